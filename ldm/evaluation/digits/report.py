"""`ldm evaluate` of a model of coloured digits: is the digit, its ink and its style what the prompt says?

Four kinds of prompts are judged: every pair of digit and ink that occurs in training ('a red 7'), every pair that does
not, and whole descriptions ('a thin left-leaning red 7 on a white ground') of either. Beside them stands what the judge
says of real handwriting that neither it nor the model was trained on, as drawn and through the model's autoencoder: no
model can be measured above that.
"""

import json
import logging
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.config.settings import DataOptions
from ldm.data import spread
from ldm.data.digits import GROUNDS, HELD_OUT, PAIRS, SLANT, THICKNESS, DigitData, phrase, splits
from ldm.evaluation.digits.classifier import DigitJudge, agreement, pictures_of
from ldm.evaluation.generation import AGREE, DISAGREE, Drawing, draw
from ldm.models.latents import posterior
from ldm.models.lora import as_options
from ldm.pipelines.loading import load_pipeline
from ldm.training.data_order import image_batches
from ldm.utils.atomic_files import write_whole
from ldm.utils.errors import UserError
from ldm.utils.image_grid import image_grid, save_png
from ldm.utils.image_tensors import to_pixels
from ldm.utils.untrusted_files import read_yaml

log = logging.getLogger(__name__)

REAL = 512  # validation pictures that the judge and the autoencoder are measured on
COLUMNS = 16
PARTS = ("digit", "ink", "both", "ground", "thickness", "slant")


def lean(slant: str) -> str:
    """The word of a caption: 'left' -> 'left-leaning'."""
    return slant if slant == "upright" else f"{slant}-leaning"


def pair_prompts(pairs: tuple[tuple[int, str], ...], count: int) -> list[dict[str, Any]]:
    """`count` prompts for each pair, as what is asked for: dicts with digit, ink and prompt."""
    return [
        {"digit": digit, "ink": ink, "prompt": phrase(str(digit), ink)} for digit, ink in pairs for _ in range(count)
    ]


def style_prompts(pairs: tuple[tuple[int, str], ...], count: int, seed: int) -> list[dict[str, Any]]:
    """About `count` whole descriptions: every pen with every slant and ground equally often, pairs drawn at random."""
    rng = np.random.default_rng(seed)
    styles = [(pen, slant, ground) for pen in THICKNESS for slant in SLANT for ground in GROUNDS]
    asked = []
    for pen, slant, ground in styles * max(1, round(count / len(styles))):
        digit, ink = pairs[rng.integers(len(pairs))]
        prompt = phrase(str(digit), ink, ground, pen, lean(slant))
        asked.append({"digit": digit, "ink": ink, "ground": ground, "thickness": pen, "slant": slant, "prompt": prompt})
    return asked


def evaluate(run: Path | str, args: Namespace) -> dict:
    """Judge a model of coloured digits; write metrics.json and PNG sheets into `args.output`; return the metrics.

    Args:
        run: a finished LDM run or an exported folder.
        args: of `ldm evaluate`: output, samples, seed, steps, guidance, batch, device, cache_dir, lora. `samples` is
            the number of pictures of each held-out pair; the pairs of training and the whole descriptions get about as
            many altogether as the held-out pairs.
    Raises: UserError when the package with the digits is missing, or the model draws no colour.
    """
    started = time.monotonic()
    judge = DigitJudge()
    pipeline = load_pipeline(run, device=args.device, **as_options(args.lora))
    if pipeline.image_shape[0] != 3:
        raise UserError(f"{run} draws pictures of {pipeline.image_shape[0]} channel(s); coloured digits have 3")
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    real = real_digits(run, pipeline, args.cache_dir)
    unseen = HELD_OUT if kept_out(run) else ()
    sections = {"real": of_real(real, judge), "real_decoded": of_decoded(pipeline, real, judge)}
    for name, asked in plan(unseen, args.samples, args.seed).items():
        seeds = range(args.seed, args.seed + len(asked))
        images = draw(pipeline, [one["prompt"] for one in asked], seeds, Drawing(args.steps, args.guidance, args.batch))
        judged = judge.judge(images)
        sections[name] = agreement(judged, asked)
        right = [d == one["digit"] and i == one["ink"] for d, i, one in zip(judged.digits, judged.inks, asked)]
        save_sheet(images, asked, right, output / f"{name.replace('_', '-')}.png")
        if name in ("seen", "heldout"):
            sections[name]["pairs"] = by_pair(asked, right)
        log.info("%s: %d of %d agree in digit and ink", name, sum(right), len(right))
    metrics = {
        "model": {"source": str(run), "digest": pipeline.digest, "lora": args.lora},
        "settings": {"seed": args.seed, "samples": args.samples, **_settings(pipeline, args)},
        "judge": {name: judge.card[name] for name in ("sha256", "trained_on", "test")},
        "held_out_of_training": [list(pair) for pair in unseen],
        "summary": summary(sections),
        "sections": sections,
        "seconds": round(time.monotonic() - started),
    }
    write_whole(output / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    print(table(sections))
    return metrics


def plan(unseen: tuple[tuple[int, str], ...], samples: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """What is asked for, by section."""
    seen = tuple(pair for pair in PAIRS if pair not in unseen)
    total = samples * len(HELD_OUT)
    asked = {
        "seen": pair_prompts(seen, max(1, round(total / len(seen)))),
        "seen_described": style_prompts(seen, total, seed),
    }
    if unseen:
        asked["heldout"] = pair_prompts(unseen, samples)
        asked["heldout_described"] = style_prompts(unseen, total, seed + 1)
    return asked


def kept_out(run: Path | str) -> bool:
    """Whether a run was trained without the held-out pairs; taken for granted of a model without settings."""
    settings = read_yaml(Path(run) / "config.yaml")
    return bool(settings.get("data", {}).get("digits", {}).get("heldout", True))


def real_digits(run: Path | str, pipeline, cache_dir: Path) -> DigitData:
    """Handwriting that no part of the model was trained on, at the model's size."""
    side = pipeline.image_shape[1]
    return splits(DataOptions(source="digits", resolution=side, channels=3, cache_dir=cache_dir))["test"]


def of_real(data: DigitData, judge: DigitJudge) -> dict:
    """What the judge says of real pictures."""
    images, metas = pictures_of(data, spread(len(data), REAL).tolist())
    return agreement(judge.judge(images), metas)


@torch.no_grad()
def of_decoded(pipeline, data: DigitData, judge: DigitJudge) -> dict:
    """The same pictures, encoded and decoded by the model's autoencoder."""
    vae, decoded = pipeline.networks.module("vae"), []
    for batch in image_batches(data, 64, limit=REAL):
        latents = posterior(vae, batch.to(vae.device, vae.dtype)).mode()
        decoded.append(to_pixels(vae.decode(latents).sample.clamp(-1, 1)))
    metas = [data.meta(int(i)) for i in spread(len(data), REAL)]
    return agreement(judge.judge(np.concatenate(decoded)), metas)


def by_pair(asked: list[dict[str, Any]], right: list[bool]) -> dict[str, list[int]]:
    """'7 red' -> [right, all]."""
    found: dict[str, list[int]] = {}
    for one, good in zip(asked, right, strict=True):
        entry = found.setdefault(f"{one['digit']} {one['ink']}", [0, 0])
        entry[0] += int(good)
        entry[1] += 1
    return found


def save_sheet(images: np.ndarray, asked: list[dict[str, Any]], right: list[bool], path: Path) -> None:
    """At most 160 pictures, evenly chosen, with green borders where digit and ink are right."""
    chosen = spread(len(images), 10 * COLUMNS)
    borders = [AGREE if right[i] else DISAGREE for i in chosen]
    labels = [asked[i]["prompt"].removeprefix("a ").removeprefix("an ") for i in chosen]
    save_png(image_grid([images[i] for i in chosen], COLUMNS, labels=labels, borders=borders, pad=2, scale=2), path)


def summary(sections: dict[str, dict]) -> dict[str, dict]:
    """The few numbers that are quoted: digit and ink of trained pairs, both of pairs never seen, and their ceilings."""
    quoted = {
        "digit": ("seen", "digit"),
        "ink": ("seen", "ink"),
        "pairs_never_seen": ("heldout", "both"),
        "real_digit": ("real", "digit"),
        "real_decoded_digit": ("real_decoded", "digit"),
    }
    return {name: sections[section][part] for name, (section, part) in quoted.items() if section in sections}


def table(sections: dict[str, dict]) -> str:
    """Shares in percent with their 95% intervals, a row for each section."""
    rows = [f"{'':<20}{'pictures':>9}" + "".join(f"{part:>20}" for part in PARTS)]
    for name, section in sections.items():
        cells = [_cell(section.get(part)) for part in PARTS]
        rows.append(f"{name.replace('_', ', '):<20}{section['digit']['n']:>9}" + "".join(f"{c:>20}" for c in cells))
    return "\n".join([*rows, "% that agree with the prompt, and the 95% interval (Wilson); both = digit and ink"])


def _cell(found: dict | None) -> str:
    if not found:
        return "-"
    low, high = (100 * bound for bound in found["interval"])
    return f"{100 * found['share']:.1f} ({low:.1f}-{high:.1f})"


def _settings(pipeline, args: Namespace) -> dict:
    given = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    return {name: pipeline.defaults.get(name) if value is None else value for name, value in given.items()}
