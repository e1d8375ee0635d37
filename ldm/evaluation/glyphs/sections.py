"""What a report of `ldm evaluate` says of a glyph model's images, a section for each question."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data import evenly_spaced_indices
from ldm.data.glyphs.dataset import GlyphData
from ldm.evaluation import loss_by_time
from ldm.evaluation.feature_extractors import ClipEmbedder
from ldm.evaluation.glyphs.adherence import ceiling, complete_agreement, permuted
from ldm.evaluation.glyphs.composition import facts
from ldm.evaluation.glyphs.novelty import READABLE, Neighbours, Pool, distinctness, nearest_glyphs, novelty, to_size
from ldm.evaluation.glyphs.prompts import DESCRIBED, RECOMBINED, SAMPLED, PromptSpec
from ldm.evaluation.glyphs.samples import GeneratedSet, ModelResults, Plan, Reference, glyph_images
from ldm.evaluation.glyphs.validity import compare_measures, measure_glyphs
from ldm.evaluation.metrics.confidence import bootstrap, over_seeds
from ldm.evaluation.metrics.corruptions import blurred, mirrored
from ldm.evaluation.metrics.distribution_distances import with_reference_range
from ldm.evaluation.metrics.proportions import proportion, wilson_interval
from ldm.evaluation.ocr import OcrResult
from ldm.evaluation.options import AGREE, DISAGREE, UNKNOWN
from ldm.models.clip import recall_at
from ldm.utils.image_grid import image_grid, save_png

COLUMNS = 16
SHOWN = 96  # images in a grid
UNSEEN = 512  # real characters whose nearest training glyph is searched for
NUM_PERMUTATIONS = 20  # the floor is the mean over so many permutations of the prompts
CORRUPTIONS = {
    "mirrored": mirrored,
    "blurred": lambda images: blurred(images, 1.5 * images.shape[1] / 64),
    "halves exchanged": lambda images: np.roll(images, images.shape[2] // 2, axis=2),
}
LOGGED = ("loss", "train_loss", "gap", "judged/layout", "judged/radical")

log = logging.getLogger(__name__)


def adherence_section(results: ModelResults, name: str, reference: Reference) -> dict:
    """Per measure: mean with interval, each set's mean and their spread, ceiling and floor; agreement per prompt."""
    part, scores = results.samples[name], results.scores[name]
    rng = np.random.default_rng(0)
    chance = [
        reference.scorer.scores(results.predictions[name], permuted(part.specs, rng)) for _ in range(NUM_PERMUTATIONS)
    ]
    top = ceiling_of(name, part.specs, reference)
    measures: dict[str, Any] = {}
    for measure_, values in scores.items():
        known = np.isfinite(values)
        if not known.any():
            continue
        # These prompts stand for all others; the other lists are complete, and only the images are a sample.
        clusters = part.prompts[known] if name in SAMPLED else None
        measures[measure_] = {
            **_interval(values[known], clusters),
            "sets": over_seeds([values[known & (part.sets == s)].mean() for s in np.unique(part.sets)]),
            "ceiling": top.get(measure_),
            "floor": float(np.mean([np.nanmean(permutation[measure_]) for permutation in chance])),
        }
    prompts = [] if name in DESCRIBED else _per_prompt(part, complete_agreement(scores))
    composed = facts(name, part.specs) if name in ("pair", *RECOMBINED) else {}
    return {"measures": measures, "prompts": prompts, **composed}


def ceiling_of(name: str, specs: Sequence[PromptSpec], reference: Reference) -> dict[str, float]:
    """Mean scores of glyphs that have what the prompts of a section ask for."""
    if name in RECOMBINED:
        return reference.recombiner.ceiling(specs, reference.scorer)
    if name != "named":
        return ceiling(specs, reference.real.specs, reference.real.scores)
    asked, rows = reference.described(specs)
    if not asked:
        return {}
    scores = reference.scorer.scores(reference.scorer(glyph_images(reference.own["test"], rows)), asked)
    return {measure_: float(np.nanmean(values)) for measure_, values in scores.items() if np.isfinite(values).any()}


def _interval(values: np.ndarray, clusters: np.ndarray | None) -> dict:
    """By bootstrap; of values that are all 0 or all 1, whose resamples are all alike, Wilson's of as many prompts."""
    found = bootstrap(values, clusters=clusters)
    if found.error == 0 and found.value in (0, 1):
        low, high = wilson_interval(int(found.value) * found.clusters, found.clusters)
        return found.rounded() | {"interval": [round(low, 4), round(high, 4)]}
    return found.rounded()


def _per_prompt(part: GeneratedSet, agreement: np.ndarray) -> list[dict]:
    """The proportion of images that agree in everything, prompt by prompt, where the classifier can tell."""
    rows = []
    for i, spec in part.numbered:
        mine = agreement[part.prompts == i]
        if np.isfinite(mine).any():
            rows.append({"prompt": spec.prompt, "agreement": proportion(mine == 1)})
    return rows


def fidelity_section(part: GeneratedSet, reference: Reference) -> dict:
    """Distances of images for the test split's captions to that split, on the features of each network.

    The floor is real characters of the validation split; the ceilings are those characters, corrupted.
    """
    other = reference.own["validation"]
    chosen = evenly_spaced_indices(len(other), len(part.images))
    real, floor = glyph_images(reference.own["test"]), glyph_images(other, chosen)
    section = {}
    for extractor in reference.features:
        embed = extractor.embed
        corrupted = {key: embed(corrupt(floor)) for key, corrupt in CORRUPTIONS.items()}
        found = with_reference_range(embed(part.images), embed(real), corrupted, embed(floor))
        section[extractor.name] = {"digest": extractor.digest} | found
        log.info("fidelity by the %s: measured", extractor.name)
    return section


def clip_section(part: GeneratedSet, reference: Reference, clip: ClipEmbedder) -> dict:
    """Cosine of each image and its prompt, and how often the prompt is among the k nearest of all prompts of its set.

    The ceiling is that of real characters of the test split with the same prompts, the floor that of permuted prompts.
    """
    first, test = part.sets == part.sets[0], reference.own["test"]
    prompts = [spec.prompt for spec in part.specs]
    image, text = clip(part.images, prompts)
    rows = {ord(test.meta(i)["char"]): i for i in range(len(test))}
    known = [i for i in np.flatnonzero(first).tolist() if part.specs[i].codepoint in rows]
    real = glyph_images(test, [rows[part.specs[i].codepoint] for i in known])
    real_image, real_text = clip(real, [prompts[i] for i in known])
    order = np.random.default_rng(0).permutation(len(prompts))
    cosine = bootstrap((image * text).sum(1).numpy(), clusters=part.prompts).rounded()
    top, bottom = (float((a * b).sum(1).mean()) for a, b in ((real_image, real_text), (image, text[order])))
    sets = [recall_at(image[part.sets == s], text[part.sets == s]) for s in np.unique(part.sets)]
    return {
        "digest": clip.digest,
        "cosine": cosine | {"ceiling": round(top, 4), "floor": round(bottom, 4)},
        "recall": {k: {**over_seeds([each[k] for each in sets]), "prompts": int(first.sum())} for k in sets[0]},
        "recall_of_real": recall_at(real_image, real_text),
    }


def learning_section(run: Path, plan: Plan, device: str | None) -> dict:
    """Of a run: its logged losses, and the loss at every time beside predictors that know little of the data."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    curves = {name: [(row["step"], row[f"ema/{name}"]) for row in rows if f"ema/{name}" in row] for name in LOGGED}
    measured = loss_by_time.measure_run(run, loss_by_time.Plan(limit=min(256, 7 * plan.samples)), device)
    return {"curves": {name: points for name, points in curves.items() if len(points) > 1}, **measured}


def validity_section(part: GeneratedSet, confidences: np.ndarray, reference: Reference) -> dict:
    """Ink, strokes and the OCR's confidences (n,) in the described characters' images beside those of real ones."""
    real = glyph_images(reference.own["test"])
    measures = {
        "generated": measure_glyphs(part.images) | {"confidence": confidences},
        "real": measure_glyphs(real) | {"confidence": reference.read_test.confidences},
    }
    return {"measures": compare_measures(measures["generated"], measures["real"])}


def reading_section(part: GeneratedSet, read: OcrResult, reference: Reference) -> dict:
    """How often the OCR is sure of what it reads, and how often it reads the character that the prompt describes."""
    specs, rows = reference.described(part.specs)
    real = _some(reference.read_test, rows) if specs else None
    found = {}
    for name, values, of_real in (
        ("readable", read.confidences >= READABLE, real and real.confidences >= READABLE),
        ("as_described", _as_described(read, part.specs, reference), real and _as_described(real, specs, reference)),
    ):
        known = np.isfinite(values)
        top = None if of_real is None else round(float(np.nanmean(of_real)), 4)
        found[name] = {**_interval(values[known].astype(float), part.prompts[known]), "ceiling": top, "floor": None}
    return found


def _some(read: OcrResult, rows: list[int]) -> OcrResult:
    return OcrResult([read.texts[i] for i in rows], read.confidences[rows])


def _as_described(read: OcrResult, specs: Sequence[PromptSpec], reference: Reference) -> np.ndarray:
    """1 where the character that a prompt describes is read, 0 where another, nan where the OCR does not know it."""
    asked = [chr(spec.codepoint) for spec in specs]
    known = reference.reader.known
    return np.array([float(t == c) if c in known else np.nan for t, c in zip(read.texts, asked, strict=True)])


def novelty_section(results: ModelResults, read: dict[str, OcrResult], reference: Reference, output: Path) -> dict:
    """How near the images come to training glyphs, beside how near unseen characters do; the nearest in a grid.

    `read`: what the OCR reads in each section.
    """
    train, unseen = reference.both["train"], reference.both["test"]
    pool, samples = Pool(glyph_images(train)), results.samples
    images = np.concatenate([part.images for part in samples.values()])
    agreement = np.concatenate([complete_agreement(scores) == 1 for scores in results.scores.values()])
    texts = [text for name in samples for text in read[name].texts]
    neighbours = nearest_glyphs(images, pool)
    save_nearest(images, neighbours, train, output / "nearest.png")
    repeated = [part for name, part in samples.items() if name != "character"]  # several images per prompt and set
    by_prompt = {spec.prompt: part.images[part.prompts == i] for part in repeated for i, spec in part.numbered}
    real = glyph_images(unseen, evenly_spaced_indices(len(unseen), UNSEEN))
    confidences = np.concatenate([read[name].confidences for name in samples])
    return {
        "generated": novelty(neighbours, agreement, OcrResult(texts, confidences)),
        "real_unseen": novelty(nearest_glyphs(real, pool)),
        **distinctness(by_prompt),
    }


def save_nearest(images: np.ndarray, neighbours: Neighbours, train: GlyphData, path: Path) -> None:
    """A grid: the images nearest to a training glyph, then some from the complete ranking, each above that glyph."""
    ranked = np.argsort(-neighbours.similarity)
    chosen = [*ranked[:COLUMNS], *ranked[evenly_spaced_indices(len(ranked), 3 * COLUMNS)]]
    shown, labels = [], []
    for start in range(0, len(chosen), COLUMNS):
        row = chosen[start : start + COLUMNS]
        nearest, empty = neighbours.index[row].tolist(), [""] * (COLUMNS - len(row))
        blank = [np.full((64, 64), 255, np.uint8)] * len(empty)
        shown += [*to_size(images[row]), *blank, *to_size(glyph_images(train, nearest)), *blank]
        labels += [f"{neighbours.similarity[i]:.2f}" for i in row] + empty
        labels += [train.ids[i].split("/")[0] for i in nearest] + empty
    save_png(image_grid(shown, COLUMNS, labels=labels), path)


def save_section(part: GeneratedSet, agreement: np.ndarray, path: Path) -> None:
    """A grid of evenly chosen images, with borders by whether they agree with their prompt."""
    chosen = evenly_spaced_indices(len(part.images), SHOWN)
    borders = [UNKNOWN if np.isnan(agreement[i]) else AGREE if agreement[i] else DISAGREE for i in chosen]
    save_png(image_grid(list(part.images[chosen]), COLUMNS, borders=borders, pad=3), path)
