"""Measure a model on the emoji set: words, style, group, colours of shapes, the autoencoder, copies, and 12 prompts.

    python -m scripts.evaluate_emoji runs/emoji/ldm emoji --classifier emoji-classifier -o report-emoji
    python -m scripts.evaluate_emoji my-model emoji --classifier emoji-classifier --clip runs/emoji/clip

MODEL is a run of train_ldm.py or an exported folder; DATA is the folder of scripts/build_emoji.py, the classifier that
of scripts.emoji.classifier. Beside each number stands what real images reach by the same measure.

words      R-precision: is an image of a held-out caption nearer to it than to 99 other captions, for the CLIP of
           --clip, or the one beside the run; "of_ceiling" is its ratio to that of the real images. The same for
           captions seen in training
style      the classifier finds the style that the prompt names; group likewise, apart for held-out names whose prompt
           names the group and those whose prompt does not, and for names seen in training
colours    hearts, circles and squares in eight colours, every style: the nearest colour by CIEDE2000, for pairs seen in
           training and for pairs held out of it
swatches   CIEDE2000 between flat colours and their reconstructions; reconstruction, PSNR of all held-out images
copies     images nearer to a training image than 99% of the real held-out ones

Written: metrics.json, and grid.png: a row for each of PROMPTS, a column for each seed, none picked out, no text in it.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.evaluation.feature_extractors import ClipEmbedder, FeatureExtractor
from ldm.evaluation.images.r_precision import words_section
from ldm.evaluation.images.report import (
    coarse_colours,
    nearest_features,
    novelty_section,
)
from ldm.evaluation.metrics.confidence import bootstrap
from ldm.evaluation.metrics.proportions import proportion
from ldm.evaluation.metrics.reconstruction import psnr, reconstruct
from ldm.evaluation.options import write_metrics
from ldm.evaluation.run_loading import open_run
from ldm.pipelines.generation import SamplingOptions, generate_pixels
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.pipeline import Pipeline
from ldm.utils.errors import UserError
from ldm.utils.image_grid import image_grid, save_png
from ldm.utils.runtime import run_main
from scripts.emoji.classifier import EmojiClassifier
from scripts.emoji.colours import ColourNames, swatch_differences, swatch_images
from scripts.emoji.data import Emoji, EmojiSet, images_of, read_set, some

PROMPTS = (
    "a red apple emoji, noto style",
    "flag of France, flag, twemoji style",
    "a grinning face emoji, fluent style",
    "a blue heart emoji, twemoji style",  # a pair held out of training
    "a dog face emoji, noto style",
    "a tulip emoji, fluent style",
    "an airplane emoji, twemoji style",  # a name held out of training
    "a pizza emoji, noto style",
    "a green circle emoji, fluent style",
    "a soccer ball emoji, twemoji style",
    "a house emoji, noto style",
    "a crescent moon emoji, fluent style",
)
GRID_SEEDS = 4
WANTED = 6.0  # CIEDE2000 that every swatch should be within


@dataclass(frozen=True)
class Request:
    """Prompts of emoji, from their captions in turn: image i is generated from `seed` + i."""

    emoji: list[Emoji]
    forms: list[int]

    @classmethod
    def of(cls, emoji: list[Emoji]) -> "Request":
        return cls(emoji, [i % len(each.captions) for i, each in enumerate(emoji)])

    @property
    def prompts(self) -> list[str]:
        return [each.captions[form] for each, form in zip(self.emoji, self.forms, strict=True)]

    def which(self, attribute: str) -> np.ndarray:
        """Whose prompt names the style or group: bool (n,) of "named_style" or "named_group"."""
        return np.array([getattr(each, attribute)[form] for each, form in zip(self.emoji, self.forms, strict=True)])


def open_model(path: Path, device: str | None) -> Pipeline:
    """A run or an exported folder. Raises: UserError: it is neither, or not of RGB images."""
    pipeline = open_run(path, device).pipeline if (path / "config.yaml").is_file() else load_pipeline(path, device)
    channels, height, width = pipeline.image_shape
    if channels != 3 or height != width:
        raise UserError(f"{path} makes images of {channels} x {height} x {width}: the emoji are RGB and square")
    return pipeline


def clip_of(model: Path, given: Path | None) -> ClipEmbedder | None:
    """The CLIP that was named, else the one of the run, if there is one. Raises: UserError: none at `given`."""
    beside = model.parent / "clip"
    if given is None and not (beside / "final").is_dir():
        return None
    return ClipEmbedder(given or beside)


# ---- measures -------------------------------------------------------------------------------------------------------


def words(generated: np.ndarray, real: np.ndarray, prompts: list[str], clip: Callable | None) -> dict | None:
    """R-precision with its ratio to the ceiling; None without a CLIP, or where nothing can be told apart."""
    found = words_section(generated, real, prompts, clip) if clip else None
    return found and found | {"of_ceiling": ratio(found["share"], found["ceiling"])}


def ratio(value: float, ceiling: float) -> float | None:
    return round(value / ceiling, 4) if ceiling else None


def named_right(images: np.ndarray, request: Request, classifier: EmojiClassifier) -> dict[str, dict]:
    """Whether the classifier finds the style and the group of images, uint8 (n, h, w, 3), by what the prompts name."""
    styles, groups = classifier.predict(images)
    style = np.array([one == each.style for one, each in zip(styles, request.emoji, strict=True)])
    group = np.array([one == each.group for one, each in zip(groups, request.emoji, strict=True)])
    told_style, told_group = request.which("named_style"), request.which("named_group")
    return {
        "style": proportion(style[told_style]),
        "group_named": proportion(group[told_group]),
        "group_not_named": proportion(group[~told_group]),
        "group": proportion(group),
    }


def colour_prompts(data: EmojiSet) -> list[tuple[str, str, str]]:
    """(shape, colour, prompt) of all pairs in all styles."""
    return [
        (shape, colour, f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape} emoji, {style} style")
        for shape in data.shapes
        for colour in data.colours
        for style in data.styles
    ]


def colours_section(
    generate: Callable[[list[str], int], np.ndarray], data: EmojiSet, seeds: Sequence[int]
) -> dict[str, Any]:
    """Proportions of images whose colour is that of the prompt, for pairs seen and held out, and of each pair."""
    names, asked = ColourNames(data), colour_prompts(data)
    found = [names.name(generate([prompt for _, _, prompt in asked], seed)) for seed in seeds]
    right = np.array([[one == colour for one, (_, colour, _) in zip(each, asked, strict=True)] for each in found])
    held = np.array([(shape, colour) in data.held_out_pairs for shape, colour, _ in asked])
    pairs = [f"{colour} {shape}" for shape, colour, _ in asked]
    chosen = {pair: [i for i, each in enumerate(pairs) if each == pair] for pair in dict.fromkeys(pairs)}
    return {
        "seen": proportion(right[:, ~held].ravel()),
        "held_out": proportion(right[:, held].ravel()),
        "real": names.accuracy,
        "held_out_pairs": sorted(f"{colour} {shape}" for shape, colour in data.held_out_pairs),
        "each_pair": {pair: round(float(right[:, rows].mean()), 4) for pair, rows in chosen.items()},
    }


def autoencoder_section(vae, data: EmojiSet, size: int) -> dict[str, Any]:
    """PSNR of all held-out images, and CIEDE2000 of flat colours."""
    held = images_of(data.splits["validation"] + data.splits["test"], size)
    each = swatch_differences(reconstruct(vae, swatch_images(size))[0])
    return {
        "psnr": bootstrap(psnr(held, reconstruct(vae, held)[0])).rounded(),
        "swatches": each,
        "worst_swatch": max(each.values()),
        "swatches_within": f"{sum(value <= WANTED for value in each.values())} of {len(each)} within {WANTED:g}",
    }


def copies_section(generated: np.ndarray, real: np.ndarray, data: EmojiSet, extractor: FeatureExtractor) -> dict:
    """Near copies of training images among generated ones; real held-out images give the limit, and 1% of them are."""
    train = data.splits["train"]
    parts = [images_of(train[start : start + 256], real.shape[1]) for start in range(0, len(train), 256)]
    known = np.concatenate([extractor.embed(part) for part in parts])
    ours, theirs = (nearest_features(extractor.embed(images), known)[1] for images in (generated, real))
    return {"features": extractor.name, "false_alarm_rate": 0.01} | novelty_section(ours, theirs)


# ---- the whole ------------------------------------------------------------------------------------------------------


def evaluate(pipeline: Pipeline, data: EmojiSet, clip: Any, classifier: EmojiClassifier, args: Any) -> dict[str, Any]:
    """All measures as one mapping; writes grid.png to `args.output`."""
    sampling = SamplingOptions(args.steps, args.guidance, args.batch, args.interval and tuple(args.interval))

    def generate(prompts: list[str], seed: int) -> np.ndarray:
        return generate_pixels(pipeline, prompts, range(seed, seed + len(prompts)), sampling)

    size = pipeline.image_shape[1]
    new, seen = (Request.of(some(data.splits[split], args.samples)) for split in ("validation", "train"))
    real, real_seen = images_of(new.emoji, size), images_of(seen.emoji, size)
    first, first_seen = (generate(request.prompts, args.seeds[0]) for request in (new, seen))
    colours = FeatureExtractor("colours at 8 x 8", "", coarse_colours)
    extractor = FeatureExtractor("CLIP", clip.digest, clip.embed) if clip else colours
    found = {
        "words": words(first, real, new.prompts, clip),
        "words_of_seen_names": words(first_seen, real_seen, seen.prompts, clip),
        "held_out_names": named_right(first, new, classifier),
        "held_out_names_real": named_right(real, new, classifier),
        "seen_names": named_right(first_seen, seen, classifier),
        "classifier": {name: classifier.card["held_out_names"][name] for name in ("style", "group")},
        "colours": colours_section(generate, data, args.seeds),
        "autoencoder": autoencoder_section(pipeline.networks.module("vae"), data, size),
        "copies": copies_section(first, real, data, extractor),
    }
    columns = [generate(list(PROMPTS), 1000 * seed) for seed in range(GRID_SEEDS)]
    rows = [column[i] for i in range(len(PROMPTS)) for column in columns]
    save_png(image_grid(rows, GRID_SEEDS, scale=max(1, 128 // size)), args.output / "grid.png")
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.evaluate_emoji", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", type=Path, help="a run of train_ldm.py, or an exported folder")
    parser.add_argument("data", type=Path, help="folder made by scripts/build_emoji.py")
    parser.add_argument("--classifier", type=Path, required=True, help="folder made by scripts.emoji.classifier")
    parser.add_argument("--clip", type=Path, metavar="RUN", help="a run of train_clip.py (default: the model's own)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1000, 2000, 3000], help="of the colours")
    parser.add_argument("--samples", type=int, default=394, help="held-out, and seen, captions at most (394)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    parser.add_argument("--interval", nargs=2, type=float, help="guide only at these times (default: the model's)")
    parser.add_argument("--batch", type=int, default=64, help="images at once: memory, not results (default: 64)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest available)")
    parser.add_argument("-o", "--output", type=Path, default=Path("report-emoji"), help="folder to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure, write metrics.json and grid.png, print a few numbers."""
    args = parse(argv)
    data, classifier, pipeline = (
        read_set(args.data),
        EmojiClassifier(args.classifier),
        open_model(args.model, args.device),
    )
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(args, name) for name in ("seeds", "samples", "steps", "guidance", "interval")}
    metrics = {"format": 1, "model": str(args.model), "digest": pipeline.digest, "settings": settings}
    metrics |= evaluate(pipeline, data, clip_of(args.model, args.clip), classifier, args) | {"grid": list(PROMPTS)}
    write_metrics(metrics, args.output)
    print(json.dumps(summary(metrics), indent=1))
    print(f"{args.output / 'metrics.json'}: all numbers; {args.output / 'grid.png'}: {len(PROMPTS)} prompts")
    return 0


def summary(metrics: dict[str, Any]) -> dict[str, Any]:
    """The numbers that are quoted."""
    spoken, known = metrics["words"], metrics["words_of_seen_names"]
    new, seen = metrics["held_out_names"], metrics["seen_names"]
    return {
        "words_of_ceiling": spoken and spoken["of_ceiling"],
        "words_of_ceiling_seen_names": known and known["of_ceiling"],
        "style": new["style"]["share"],
        "group_where_named": new["group_named"]["share"],
        "group_of_seen_names": seen["group"]["share"],
        "group_of_real": metrics["held_out_names_real"]["group"]["share"],
        "colour_of_seen_pairs": metrics["colours"]["seen"]["share"],
        "colour_of_held_out_pairs": metrics["colours"]["held_out"]["share"],
        "worst_swatch": metrics["autoencoder"]["worst_swatch"],
        "psnr": metrics["autoencoder"]["psnr"]["value"],
        "near_copies": metrics["copies"]["near_copies"]["share"],
    }


if __name__ == "__main__":
    run_main(main)
