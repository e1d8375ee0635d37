"""Which guidance a glyph model should have: prompts followed and likeness to real glyphs, over scales and intervals.

    python benchmarks/guidance.py models/glyphs 3 8 8:0.3-0.9
    python -m scripts.glyph_classifier.train --output OTHER --recombined 0
    python benchmarks/guidance.py models/glyphs 8:0.3-0.9 --classifier OTHER
    python benchmarks/guidance.py models/glyphs 2.5 --weak EARLIER        away from a worse model (autoguidance)

For each setting, a scale and optionally the times at which to guide: the 15 held-out pairs and descriptions of test
characters from the same seeds; the glyph classifier's accuracies, the fraction that the OCR reads, and the kernel
distance of OCR features to a third of the real test glyphs.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ldm.config.settings import DataOptions
from ldm.evaluation.glyphs.classifier import GlyphClassifier
from ldm.evaluation.glyphs.novelty import READABLE
from ldm.evaluation.glyphs.samples import Plan, Reference, generate_section, glyph_images
from ldm.evaluation.metrics.distribution_distances import kernel_distance
from ldm.pipelines.autoguidance import load_weak
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.pipeline import Pipeline

COLUMNS = "guidance | pairs: both | layout | radical | OCR reads | strokes off by | KID of OCR features"


def setting(text: str) -> tuple[float, tuple[float, float]]:
    """'8:0.3-0.9' -> (8.0, (0.3, 0.9)); '8' guides at all times."""
    scale, _, times = text.partition(":")
    first, _, last = (times or "0-1").partition("-")
    return float(scale), (float(first), float(last))


class Autoguided:
    """A pipeline whose images are led away from those of a weak model."""

    def __init__(self, pipeline: Pipeline, weak: str):
        self.pipeline, self.weak = pipeline, load_weak(weak, pipeline, load_pipeline)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.pipeline(*args, weak=self.weak, **options)


def measured(pipeline: Pipeline | Autoguided, reference: Reference, plan: Plan, real: np.ndarray) -> list[str]:
    """The numbers of COLUMNS after the first, by the pipeline's defaults; `real`: OCR features of real glyphs."""
    parts = {name: generate_section(pipeline, name, plan) for name in ("pair", "character")}
    pairs, described = (reference.scorer.scores(reference.scorer(part.images), part.specs) for part in parts.values())
    images, reader = parts["character"].images, reference.reader
    shares = [pairs["both"], described["layout"], described["radical"], reader.read(images).confidences >= READABLE]
    strokes, distance = np.nanmean(described["strokes_error"]), kernel_distance(reader.embed(images), real)
    return [*(f"{np.nanmean(share):.1%}" for share in shares), f"{strokes:.2f}", f"{distance:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="an exported folder, a run, or a shipped name")
    parser.add_argument("settings", nargs="+", type=setting, metavar="SCALE[:FIRST-LAST]")
    parser.add_argument("--samples", type=int, default=24, help="as of `ldm evaluate`")
    parser.add_argument("--classifier", type=Path, help="a folder with another glyph classifier")
    parser.add_argument("--weak", help="a model with the same autoencoder to lead away from")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"))
    args = parser.parse_args()
    pipeline = load_pipeline(args.model)
    asked = Autoguided(pipeline, args.weak) if args.weak else pipeline
    reference = Reference(pipeline, DataOptions(source="glyphs", cache_dir=args.cache_dir))
    if args.classifier:
        reference.scorer.classifier = GlyphClassifier(args.classifier)
    real = reference.reader.embed(glyph_images(reference.own["test"])[::3])
    print(f"| {COLUMNS} |\n|{' --- |' * 7}")
    for scale, interval in args.settings:
        pipeline.defaults.update(guidance_scale=scale, guidance_interval=interval)
        times = "" if interval == (0, 1) else f" at {interval[0]} to {interval[1]}"
        numbers = measured(asked, reference, Plan(args.samples), real)
        print(f"| {' | '.join([f'{scale:g}{times}', *numbers])} |", flush=True)


if __name__ == "__main__":
    main()
