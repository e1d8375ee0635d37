"""`ldm evaluate` of a model of coloured digits: do digit, foreground colour and style match the prompt?

Prompts are of four types: every pair of digit and colour that occurs in training ('a red 7'), every pair that does not,
and complete descriptions ('a thin left-leaning red 7 on a white ground') of either. Beside them stands the accuracy on
real handwriting that neither the classifier nor the model was trained on, as it is and reconstructed by the model's
autoencoder: the upper bound for any model.
"""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.config.settings import DataOptions
from ldm.data import evenly_spaced_indices
from ldm.data.digits import GROUNDS, HELD_OUT, PAIRS, SLANT, THICKNESS, DigitData, phrase, splits
from ldm.evaluation.digits.classifier import DigitClassifier, attribute_accuracy, digit_images
from ldm.evaluation.digits.verdict import bars
from ldm.evaluation.html import render
from ldm.evaluation.options import AGREE, DISAGREE, EvaluationOptions, write_metrics
from ldm.models.latents import posterior
from ldm.models.lora_formats import as_options
from ldm.pipelines.generation import generate_pixels
from ldm.pipelines.loading import load_pipeline
from ldm.training.data_order import image_batches
from ldm.utils.atomic_files import atomic_write
from ldm.utils.errors import UserError
from ldm.utils.image_grid import image_grid, save_png
from ldm.utils.image_tensors import to_pixels
from ldm.utils.untrusted_files import read_yaml

log = logging.getLogger(__name__)

REAL = 512  # test images that the classifier and the autoencoder are measured on
COLUMNS = 16
ATTRIBUTES = ("digit", "ink", "both", "ground", "thickness", "slant")
WORDS = {"ink": "colour", "both": "digit and colour", "ground": "background", "thickness": "pen"}
TITLES = {
    "heldout": "Pairs that training never showed",
    "seen": "Pairs of training",
    "heldout_described": "Complete descriptions of pairs that training never showed",
    "seen_described": "Complete descriptions of pairs of training",
    "real": "Real: handwriting that nothing was trained on",
    "real_decoded": "Real: the same, encoded and decoded",
}
QUOTED = {  # name in the summary -> section, attribute
    "digit": ("seen", "digit"),
    "ink": ("seen", "ink"),
    "pairs_never_seen": ("heldout", "both"),
    "real_digit": ("real", "digit"),
    "real_decoded_digit": ("real_decoded", "digit"),
}
Spec = dict[str, Any]  # attributes that a prompt specifies, and "prompt"


def evaluate_digits(run: Path | str, options: EvaluationOptions) -> dict:
    """Measure a model of coloured digits; write metrics.json and PNG grids; return the metrics.

    Args:
        run: a finished LDM run or an exported folder.
        options: `samples` is the number of images of each held-out pair; the pairs of training and the complete
            descriptions get about as many altogether as the held-out pairs.
    Raises: UserError when the package with the digits is missing, or the model generates no colour.
    """
    started, output = time.monotonic(), options.output
    classifier = DigitClassifier()
    pipeline = load_pipeline(run, device=options.device, **as_options(options.lora))
    if pipeline.image_shape[0] != 3:
        raise UserError(f"{run} generates images of {pipeline.image_shape[0]} channel(s); coloured digits have 3")
    output.mkdir(parents=True, exist_ok=True)
    real, unseen = real_digits(pipeline, options.cache_dir), HELD_OUT if held_out(run) else ()
    images, metas = digit_images(real, evenly_spaced_indices(len(real), REAL).tolist())
    sections = {
        "real": attribute_accuracy(classifier.predict(images), metas),
        "real_decoded": attribute_accuracy(classifier.predict(reconstructed(pipeline, real)), metas),
    }
    for name, specs in prompt_sections(unseen, options.samples, options.seed).items():
        seeds = range(options.seed, options.seed + len(specs))
        images = generate_pixels(pipeline, [spec["prompt"] for spec in specs], seeds, options.sampling)
        sections[name] = score_section(name, images, specs, classifier, output)
    metrics = {
        "model": {"source": str(run), "digest": pipeline.digest, "lora": options.lora},
        "settings": {"seed": options.seed, "samples": options.samples} | options.sampling.over(pipeline.defaults),
        "judge": {name: classifier.card[name] for name in ("sha256", "trained_on", "test")},
        "held_out_of_training": [list(pair) for pair in unseen],
        "summary": {n: sections[section][part] for n, (section, part) in QUOTED.items() if section in sections},
        "sections": sections,
        "seconds": round(time.monotonic() - started),
    }
    write_metrics(metrics, output)
    write_page(metrics, output)
    print(table(sections))
    print(f"{output / 'index.html'}: numbers and images in one file")
    return metrics


def write_page(metrics: dict[str, Any], output: Path) -> None:
    """Write index.html from the metrics and the grids in `output`."""
    grids = [name for name in TITLES if (output / f"{file_of(name)}.png").is_file() and name in metrics["sections"]]
    page = render(
        "digits/report.html.j2",
        output,
        bars=bars(metrics["sections"]),
        titles=TITLES,
        grids={name: file_of(name) for name in grids},
        attributes={name: WORDS.get(name, name) for name in ATTRIBUTES},
        **metrics,
    )
    atomic_write(output / "index.html", page.encode())


def file_of(section: str) -> str:
    """The name of a section's grid, without its ending."""
    return section.replace("_", "-")


# ---- prompts --------------------------------------------------------------------------------------------------------


def prompt_sections(unseen: tuple[tuple[int, str], ...], samples: int, seed: int) -> dict[str, list[Spec]]:
    """The prompts of each section."""
    seen = tuple(pair for pair in PAIRS if pair not in unseen)
    total = samples * len(HELD_OUT)
    sections = {
        "seen": pair_prompts(seen, max(1, round(total / len(seen)))),
        "seen_described": style_prompts(seen, total, seed),
    }
    if unseen:
        sections["heldout"] = pair_prompts(unseen, samples)
        sections["heldout_described"] = style_prompts(unseen, total, seed + 1)
    return sections


def pair_prompts(pairs: tuple[tuple[int, str], ...], count: int) -> list[Spec]:
    """`count` prompts for each pair of digit and ink."""
    return [
        {"digit": digit, "ink": ink, "prompt": phrase(str(digit), ink)} for digit, ink in pairs for _ in range(count)
    ]


def style_prompts(pairs: tuple[tuple[int, str], ...], count: int, seed: int) -> list[Spec]:
    """About `count` complete descriptions: every pen with every slant and ground equally often, pairs at random."""
    rng = np.random.default_rng(seed)
    styles = [(pen, slant, ground) for pen in THICKNESS for slant in SLANT for ground in GROUNDS]
    specs = []
    for pen, slant, ground in styles * max(1, round(count / len(styles))):
        digit, ink = pairs[rng.integers(len(pairs))]
        prompt = phrase(str(digit), ink, ground, pen, slant if slant == "upright" else f"{slant}-leaning")
        specs.append({"digit": digit, "ink": ink, "ground": ground, "thickness": pen, "slant": slant, "prompt": prompt})
    return specs


# ---- data -----------------------------------------------------------------------------------------------------------


def held_out(run: Path | str) -> bool:
    """Whether a run was trained without the held-out pairs; assumed of a model without settings."""
    settings = read_yaml(Path(run) / "config.yaml")
    return bool(settings.get("data", {}).get("digits", {}).get("heldout", True))


def real_digits(pipeline, cache_dir: Path) -> DigitData:
    """Handwriting that no component of the model was trained on, at the model's size."""
    side = pipeline.image_shape[1]
    return splits(DataOptions(source="digits", resolution=side, channels=3, cache_dir=cache_dir))["test"]


@torch.no_grad()
def reconstructed(pipeline, data: DigitData) -> np.ndarray:
    """The first REAL evenly spaced images, encoded and decoded by the model's autoencoder, uint8 (n, h, w, 3)."""
    vae, decoded = pipeline.networks.module("vae"), []
    for batch in image_batches(data, 64, limit=REAL):
        latents = posterior(vae, batch.to(vae.device, vae.dtype)).mode()
        decoded.append(to_pixels(vae.decode(latents).sample.clamp(-1, 1)))
    return np.concatenate(decoded)


# ---- scores ---------------------------------------------------------------------------------------------------------


def score_section(name: str, images: np.ndarray, specs: list[Spec], classifier: DigitClassifier, output: Path) -> dict:
    """Accuracies of a section, for pairs also pair by pair; a grid of its images goes to `output`."""
    predicted = classifier.predict(images)
    section: dict[str, Any] = attribute_accuracy(predicted, specs)
    correct = [d == s["digit"] and i == s["ink"] for d, i, s in zip(predicted.digits, predicted.inks, specs)]
    save_grid(images, specs, correct, output / f"{file_of(name)}.png")
    if not name.endswith("described"):
        section["pairs"] = by_pair(specs, correct)
    log.info("%s: %d of %d agree in digit and ink", name, sum(correct), len(correct))
    return section


def by_pair(specs: list[Spec], correct: list[bool]) -> dict[str, list[int]]:
    """'7 red' -> [correct, all]."""
    counts: dict[str, list[int]] = {}
    for spec, right in zip(specs, correct, strict=True):
        entry = counts.setdefault(f"{spec['digit']} {spec['ink']}", [0, 0])
        entry[0] += int(right)
        entry[1] += 1
    return counts


def save_grid(images: np.ndarray, specs: list[Spec], correct: list[bool], path: Path) -> None:
    """At most 160 images, evenly chosen, with green borders where digit and ink are correct."""
    chosen = evenly_spaced_indices(len(images), 10 * COLUMNS)
    borders = [AGREE if correct[i] else DISAGREE for i in chosen]
    labels = [f"{specs[i]['digit']} {specs[i]['ink']}" for i in chosen]  # a complete prompt is wider than its image
    save_png(image_grid([images[i] for i in chosen], COLUMNS, labels=labels, borders=borders, pad=2, scale=2), path)


def table(sections: dict[str, dict]) -> str:
    """Percentages with their 95% intervals, a row for each section."""
    rows = [f"{'':<20}{'images':>9}" + "".join(f"{name:>20}" for name in ATTRIBUTES)]
    for name, section in sections.items():
        cells = "".join(f"{_cell(section.get(attribute)):>20}" for attribute in ATTRIBUTES)
        rows.append(f"{name.replace('_', ', '):<20}{section['digit']['n']:>9}{cells}")
    return "\n".join([*rows, "% that agree with the prompt, and the 95% interval (Wilson); both = digit and ink"])


def _cell(found: dict | None) -> str:
    if not found:
        return "-"
    low, high = (100 * bound for bound in found["interval"])
    return f"{100 * found['share']:.1f} ({low:.1f}-{high:.1f})"
