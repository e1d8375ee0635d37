"""The measurements behind `ldm evaluate`: prompts in, pictures judged, numbers with intervals out.

A share that the classifier finds can be trusted no further than the classifier itself, so its accuracy on real glyphs
it never saw stands beside every number. Generated glyphs are compared with real ones of the same layout.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.config import DataOptions
from ldm.data.captions import RADICALS, STRUCTURES, layout_phrase, radical_phrase
from ldm.data.glyphs import GlyphData
from ldm.data.glyphs import splits as glyph_splits
from ldm.data.pixels import write_whole
from ldm.errors import UserError
from ldm.evaluation.glyph_classifier import GlyphClassifier
from ldm.evaluation.html import page
from ldm.evaluation.ocr import GlyphReader
from ldm.evaluation.reconstruction import ink, vae_report
from ldm.evaluation.scores import bitmaps, nearest, share
from ldm.sheet import save_png, sheet

UNNAMED = "other"  # its phrase is plain 'glyph': nothing to obey
READABLE = 0.5  # OCR confidence from which a glyph counts as read
COPY = 0.9  # similarity from which a glyph counts as a copy: a blurred or moved copy has 0.97, unseen characters 0.72
COLUMNS = 16
AGREE, DISAGREE = "#1a9850", "#d73027"

log = logging.getLogger(__name__)
Draw = Callable[[str, int], np.ndarray]  # prompt, count -> uint8 (n, h, w), dark on white


@dataclass(frozen=True)
class Plan:
    """What is drawn."""

    samples: int = 128
    radical_samples: int = 32
    radicals: int = 36
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    batch: int = 64  # pictures drawn at once
    reconstructions: int = 512  # validation glyphs through the autoencoder


def evaluate(pipeline, plan: Plan, output: Path, options: DataOptions) -> dict:
    """Measure a glyph model; write metrics.json, index.html and PNG sheets into `output`; return the metrics.

    Args:
        pipeline: see `ldm.pipeline.Pipeline`.
        options: where rendered glyphs are kept, and which; size and channels are taken from the model.
    Raises: UserError when the font package, the OCR or the classifier is missing.
    """
    started = time.monotonic()
    classifier, reader = GlyphClassifier(), GlyphReader()
    draw = drawer(pipeline, plan)
    shape = {"resolution": draw("", 1).shape[1], "channels": pipeline.vae.config.in_channels}
    splits = glyph_splits(options.model_copy(update=shape))
    layouts, pictures = layout_section(draw, plan.samples, classifier, output)
    metrics: dict[str, Any] = {
        "model": {"source": pipeline.folder.source if pipeline.folder else None, "digest": pipeline.digest},
        "plan": asdict(plan) | {"defaults": _settings(pipeline)},
        "classifier": {name: classifier.card[name] for name in ("test", "merged_layouts", "sha256")},
        "layouts": layouts,
        "radicals": radical_section(draw, plan, classifier, output),
        "quality": quality_section(pictures, splits["train"], reader),
        "novelty": novelty_section(pictures, splits, output),
        "vae": vae_report(pipeline.vae, splits["validation"], reader, output, plan.reconstructions),
    }
    metrics["summary"] = summary(metrics)
    metrics["seconds"] = round(time.monotonic() - started)
    write_whole(output / "metrics.json", (json.dumps(metrics, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(output / "index.html", page(metrics, sorted(p.name for p in output.glob("*.png"))).encode())
    return metrics


def drawer(pipeline, plan: Plan) -> Draw:
    """Drawing with the plan's seed and settings."""

    def draw(prompt: str, count: int) -> np.ndarray:
        try:
            images = pipeline(
                prompt,
                num_images_per_prompt=count,
                seed=plan.seed,
                num_inference_steps=plan.steps,
                guidance_scale=plan.guidance,
                batch_size=plan.batch,
                output_type="np",
            ).images
        except ValueError as error:
            raise UserError(str(error)) from None
        return (np.asarray(images).mean(axis=3) * 255).round().astype(np.uint8)

    return draw


def layout_section(draw: Draw, samples: int, classifier: GlyphClassifier, output: Path) -> tuple[dict, dict]:
    """Per layout phrase: how often the classifier sees that layout; also the pictures, by layout."""
    section, pictures = {}, {}
    for structure in STRUCTURES:
        expected = classifier.layout_class(structure)
        if structure == UNNAMED or expected is None:
            continue
        prompt = layout_phrase(structure)
        images = pictures[structure] = draw(prompt, samples)
        judged = classifier.judge(images).layouts
        agrees = [layout == expected for layout in judged]
        held_out = classifier.card["test"]["layout_per_class"][expected]
        section[structure] = {
            "prompt": prompt,
            "judged_as": expected,
            "agreement": share(agrees),
            "judgements": dict(Counter(judged).most_common()),
            "classifier_on_real": held_out,
        }
        _save_sheet(images, agrees, output / f"layout-{structure.replace(' ', '-')}.png")
        log.info("%s: %d of %d agree", prompt, sum(agrees), samples)
    return section, pictures


def radical_section(draw: Draw, plan: Plan, classifier: GlyphClassifier, output: Path) -> dict:
    """Per radical phrase: how often the classifier sees that radical, out of 214."""
    section = {}
    for radical in classifier.card["common_radicals"][: plan.radicals]:
        prompt = f"glyph {radical_phrase(radical)}"
        images = draw(prompt, plan.radical_samples)
        judged = classifier.judge(images).radicals
        agrees = (judged == radical).tolist()
        seen = Counter(RADICALS[r - 1] for r in judged.tolist())
        section[str(radical)] = {
            "prompt": prompt,
            "agreement": share(agrees),
            "judgements": dict(seen.most_common(6)),
            "classifier_on_real": classifier.card["test"]["radical_per_class"].get(str(radical)),
        }
        name = RADICALS[radical - 1].replace(" ", "-")
        _save_sheet(images, agrees, output / f"radical-{radical:03d}-{name}.png")
        log.info("%s: %d of %d agree", prompt, sum(agrees), plan.radical_samples)
    return section


def quality_section(pictures: dict[str, np.ndarray], real: GlyphData, reader: GlyphReader) -> dict:
    """Per layout: OCR confidence and ink of generated glyphs beside those of as many real ones of that layout."""
    section = {}
    for structure, images in pictures.items():
        section[structure] = {
            "generated": _quality(images, reader),
            "real": _quality(_real(real, structure, len(images)), reader),
        }
    return section


def novelty_section(pictures: dict[str, np.ndarray], splits: dict[str, GlyphData], output: Path) -> dict:
    """How near generated glyphs come to training glyphs, beside how near real unseen characters come to them."""
    train, unseen = splits["train"], splits["test"]
    pool = bitmaps(np.stack([train.image(i)[..., 0] for i in range(len(train))]))
    generated = np.concatenate(list(pictures.values()))
    chosen = np.linspace(0, len(unseen) - 1, min(256, len(unseen))).round().astype(int)
    real = np.stack([unseen.image(int(i))[..., 0] for i in chosen])
    index, similarity = _nearest(generated, pool)
    closest = np.argsort(-similarity)[:COLUMNS]
    pairs = [*generated[closest], *(train.image(int(i))[..., 0] for i in index[closest])]
    labels = [f"{similarity[i]:.2f}" for i in closest] + [train.ids[int(i)].split("/")[0] for i in index[closest]]
    save_png(sheet(pairs, len(closest), labels=labels), output / "nearest.png")
    return {
        "copy_from_similarity": COPY,
        "generated": _novelty(similarity),
        "real_unseen": _novelty(_nearest(real, pool)[1]),
        "distinct": share(_distinct(pictures)),
    }


def summary(metrics: dict) -> dict:
    """The few numbers that are quoted."""
    layouts, radicals, vae = metrics["layouts"], metrics["radicals"], metrics["vae"]
    return {
        "horizontal": layouts["horizontal"]["agreement"],
        "vertical": layouts["vertical"]["agreement"],
        "layouts_mean": _mean(layouts),
        "radicals_mean": _mean(radicals),
        "classifier_layout_accuracy": metrics["classifier"]["test"]["layout"],
        "classifier_radical_36_accuracy": metrics["classifier"]["test"]["radical_36_commonest"],
        "readable": {kind: _readable(metrics["quality"], kind) for kind in ("generated", "real")},
        "copies": metrics["novelty"]["generated"]["copies"]["share"],
        "vae_read_the_same": vae.get("ocr", {}).get("same_after"),
    }


def _mean(section: dict) -> float | None:
    shares = [entry["agreement"]["share"] for entry in section.values()]
    return round(float(np.mean(shares)), 4) if shares else None


def _readable(quality: dict, kind: str) -> dict:
    """Share that the OCR reads, for the two layouts that nearly nine of ten characters have."""
    found = {layout: quality[layout][kind] for layout in ("horizontal", "vertical")}
    return {layout: entry["readable"]["share"] for layout, entry in found.items() if entry}


def _settings(pipeline) -> dict:
    return {name: pipeline.defaults.get(name) for name in ("num_inference_steps", "guidance_scale")}


def _save_sheet(images: np.ndarray, agrees: list[bool], path: Path) -> None:
    borders = [AGREE if agree else DISAGREE for agree in agrees]
    save_png(sheet(list(images), COLUMNS, borders=borders, pad=3), path)


def _real(data: GlyphData, structure: str, count: int) -> np.ndarray:
    """Up to `count` real glyphs of a layout, in both styles alike (the splits are in a fixed shuffled order)."""
    found = [i for i in range(len(data)) if data.meta(i)["structure"] == structure][:count]
    return np.array([data.image(i)[..., 0] for i in found], dtype=np.uint8)


def _quality(images: np.ndarray, reader: GlyphReader) -> dict | None:
    if not len(images):
        return None
    confidence = reader.read(images)[1]
    return {
        "readable": share(confidence >= READABLE),
        "confidence": round(float(confidence.mean()), 4),
        "ink": round(float(ink(images).mean()), 4),
        "ink_deviation": round(float(ink(images).std()), 4),
        "grey": round(float(((images > 51) & (images < 204)).mean()), 4),  # neither ink nor ground: blur and smears
    }


def _nearest(images: np.ndarray, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = [nearest(bitmaps(images[i : i + 128]), pool) for i in range(0, len(images), 128)]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _novelty(similarity: np.ndarray) -> dict:
    return {
        "copies": share(similarity >= COPY),
        "nearest_median": round(float(np.median(similarity)), 4),
        "nearest_95th_percentile": round(float(np.quantile(similarity, 0.95)), 4),
    }


def _distinct(pictures: dict[str, np.ndarray]) -> list[bool]:
    """For each picture whether no earlier picture of the same prompt is nearly the same: a sign of mode collapse."""
    result = []
    for images in pictures.values():
        small = bitmaps(images)
        result += [i == 0 or bool(nearest(small[i : i + 1], small[:i])[1][0] < COPY) for i in range(len(small))]
    return result
