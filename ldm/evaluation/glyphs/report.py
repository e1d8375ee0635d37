"""`ldm evaluate` of a glyph model: generate the fixed prompts, score the images, report numbers with intervals.

Beside each number stand its ceiling, what real characters reach that neither the generator nor the classifier was
trained on; its floor, chance level, what the same images reach with randomly permuted prompts (adherence), or what real
glyphs reach against real glyphs (distances); and the digest of the network that measured it.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.config.settings import DataOptions
from ldm.data import evenly_spaced_indices
from ldm.data.glyphs.dataset import GlyphData
from ldm.evaluation import loss_by_time
from ldm.evaluation.autoencoder_report import vae_report
from ldm.evaluation.comparison import SCORES, Report, Scores, compare_scores, load_report, save_scores
from ldm.evaluation.feature_extractors import ClipEmbedder
from ldm.evaluation.glyphs.adherence import MEASURES, Predictions, ceiling, complete_agreement, permuted
from ldm.evaluation.glyphs.composition import facts
from ldm.evaluation.glyphs.in_words import lines
from ldm.evaluation.glyphs.novelty import READABLE, Neighbours, Pool, distinctness, nearest_glyphs, novelty, to_size
from ldm.evaluation.glyphs.prompts import COMPOSITION, DESCRIBED, RECOMBINED, SAMPLED, SECTIONS, PromptSpec
from ldm.evaluation.glyphs.report_page import report_page
from ldm.evaluation.glyphs.samples import GeneratedSet, Plan, Reference, clip_of, generate_section, glyph_images
from ldm.evaluation.glyphs.text_probe import text_section
from ldm.evaluation.glyphs.validity import compare_measures, measure_glyphs
from ldm.evaluation.metrics.confidence import bootstrap, over_seeds
from ldm.evaluation.metrics.corruptions import blurred, mirrored
from ldm.evaluation.metrics.distribution_distances import with_reference_range
from ldm.evaluation.metrics.proportions import proportion, wilson_interval
from ldm.evaluation.ocr import OcrResult
from ldm.evaluation.options import AGREE, DISAGREE, UNKNOWN, EvaluationOptions, write_metrics
from ldm.evaluation.run_loading import open_run
from ldm.models.clip import recall_at
from ldm.models.lora_formats import as_options
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.pipeline import Pipeline
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.atomic_files import atomic_write
from ldm.utils.errors import UserError
from ldm.utils.image_grid import image_grid, save_png
from ldm.utils.terminal import Parts

COLUMNS = 16
SHOWN = 96  # images in a grid
READ = {*SECTIONS, *DESCRIBED}  # by the OCR
UNSEEN = 512  # real characters whose nearest training glyph is searched for
NUM_PERMUTATIONS = 20  # the floor is the mean over so many permutations of the prompts
CORRUPTIONS = {
    "mirrored": mirrored,
    "blurred": lambda images: blurred(images, 1.5 * images.shape[1] / 64),
    "halves exchanged": lambda images: np.roll(images, images.shape[2] // 2, axis=2),
}
LOGGED = ("loss", "train_loss", "gap", "judged/layout", "judged/radical")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelResults:
    """A model's images, what the classifier predicts for them, and their scores, by section."""

    digest: str
    samples: dict[str, GeneratedSet]
    predictions: dict[str, Predictions]
    scores: dict[str, Scores]  # measure -> float64 (n,), nan where the prompt does not specify it

    def only(self, sections: tuple[str, ...]) -> "ModelResults":
        """Those of some sections."""
        return ModelResults(
            self.digest,
            {name: self.samples[name] for name in sections},
            {name: self.predictions[name] for name in sections},
            {name: self.scores[name] for name in sections},
        )


def evaluate_glyphs(model: str | Path | None, options: EvaluationOptions) -> dict:
    """Measure a glyph model; write metrics.json, index.html, scores.npz and PNG grids; return the metrics.

    Args:
        model: exported folder, LDM run (of one that is not finished the EMA of its newest checkpoint), Hub id, or None
            for the shipped one.
        options: `samples` is the number of images per layout; other prompts in proportion. With `sections` the report
            has only these, and no page.
    Raises: UserError when the font package, the OCR or the classifier is missing, or for an unknown section.
    """
    if unknown := set(options.sections) - {*SECTIONS, *COMPOSITION}:
        known = ", ".join((*SECTIONS, *COMPOSITION))
        raise UserError(f"--sections must be of {known}, got {', '.join(sorted(unknown))}")
    started, output = time.monotonic(), options.output
    plan = Plan(options.samples, seed=options.seed, sampling=options.sampling)
    pipeline = _opened(model, options)
    rival = _rival(options, plan)  # before minutes of work, in case there is none
    data = DataOptions(cache_dir=options.cache_dir)
    reference = Reference(pipeline, data, options.features, clip_of(pipeline, options.clip))
    with Parts(parts_of(plan, options.sections)) as parts:
        metrics, results = measure(pipeline, plan, reference, output, options.sections, parts.begin)
    metrics["model"]["lora"] = options.lora
    metrics["model"]["source"] = metrics["model"]["source"] or str(model)
    complete = not options.sections
    logged = model is not None and options.lora is None and (Path(model) / "log.jsonl").is_file()
    if complete and logged and pipeline.folder:
        metrics["learning"] = learning_section(Path(str(model)), plan, options.device)
    if rival is not None:
        metrics["against"] = against(results, rival, plan, reference)
    metrics["summary"] = summary(metrics)
    metrics["seconds"] = round(time.monotonic() - started)
    save_scores(results.scores, output)
    write_metrics(metrics, output)
    print("\n".join(lines(metrics["summary"])))
    if complete:
        atomic_write(output / "index.html", report_page(metrics, output).encode())
        print(f"{output / 'index.html'}: numbers and images in one file")
    return metrics


def _opened(model: str | Path | None, options: EvaluationOptions) -> Pipeline:
    """A model, or a run that is not finished."""
    run = Path(model or "")
    if model is None or options.lora or (run / "final").is_dir() or not checkpoint.saved(run / "checkpoints"):
        return load_pipeline(model, device=options.device, **as_options(options.lora))
    opened = open_run(run, options.device)
    log.info("%s is not finished: measured is the EMA of %s", run, opened.checkpoint)
    opened.pipeline.defaults["training"] = {"config": (run / "config.yaml").read_text(encoding="utf-8")}
    return opened.pipeline


def parts_of(plan: Plan, sections: Sequence[str]) -> dict[str, float]:
    """The parts of the work, as progress tells of them, with the number of images; 0 = none are generated."""
    chosen = tuple(sections) or SECTIONS + COMPOSITION
    parts: dict[str, float] = {
        f"images: {name}": plan.sets * plan.per_prompt[name] * len(plan.prompts(name)) for name in chosen
    }
    general = ("OCR", "likeness", "novelty", "autoencoder") if not sections else ()
    return parts | dict.fromkeys(("scores", *general), 0.0)


def measure(
    pipeline: Pipeline,
    plan: Plan,
    reference: Reference,
    output: Path,
    sections: tuple[str, ...] = (),
    begin: Callable[[str], None] = lambda part: None,
) -> tuple[dict[str, Any], ModelResults]:
    """All of the report, or some sections of its prompts; grids of the images go to `output`.

    `begin`: is told which of the `parts_of` it begins.
    """
    results = generate_and_score(pipeline, plan, reference, sections or SECTIONS + COMPOSITION, begin)
    for name, part in results.samples.items():
        save_section(part, complete_agreement(results.scores[name]), output / f"{name}.png")
    metrics: dict[str, Any] = {
        "format": 2,
        "model": {"source": pipeline.folder.source if pipeline.folder else None, "digest": pipeline.digest},
        "plan": plan.as_json(),
        "settings": {name: pipeline.defaults.get(name) for name in ("num_inference_steps", "guidance_scale")},
        "judges": {extractor.name: extractor.digest for extractor in reference.features},
        "classifier": reference.classifier.card["test"],
        "adherence": {name: adherence_section(results, name, reference) for name in results.samples},
        "text": text_section(pipeline.networks.module("text_encoder"), pipeline.tokenizer),
    }
    if sections:
        return metrics, results
    return metrics | general_sections(pipeline, plan, results, reference, output, begin), results


def general_sections(
    pipeline: Pipeline,
    plan: Plan,
    results: ModelResults,
    reference: Reference,
    output: Path,
    begin: Callable[[str], None] = lambda part: None,
) -> dict:
    """What is measured of all images or of none of them."""
    described, general = results.samples["character"], results.only(SECTIONS)
    begin("OCR")
    read = {name: reference.reader.read(part.images) for name, part in results.samples.items() if name in READ}
    reading = {name: reading_section(results.samples[name], read[name], reference) for name in DESCRIBED}
    begin("likeness")
    found: dict[str, Any] = {"reading": reading, "fidelity": fidelity_section(described, reference)}
    if reference.clip:
        found["clip"] = clip_section(described, reference, reference.clip)
    found["validity"] = validity_section(described, read["character"].confidences, reference)
    begin("novelty")
    found["novelty"] = novelty_section(general, read, reference, output)
    begin("autoencoder")
    vae, own = pipeline.networks.module("vae"), reference.own
    return found | {
        "vae": vae_report(vae, own["validation"], reference.reader, output, plan.characters, train=own["train"])
    }


def generate_and_score(
    pipeline,
    plan: Plan,
    reference: Reference,
    sections: Iterable[str],
    begin: Callable[[str], None] = lambda part: None,
) -> ModelResults:
    """Generate sections of the prompts and score their images."""
    samples = {}
    for name in sections:
        begin(f"images: {name}")
        samples[name] = generate_section(pipeline, name, plan)
    begin("scores")
    predictions = {name: reference.scorer(part.images) for name, part in samples.items()}
    scores = {name: reference.scorer.scores(predictions[name], part.specs) for name, part in samples.items()}
    return ModelResults(pipeline.digest, samples, predictions, scores)


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
    asked, images = reference.described(specs)
    scores = reference.scorer.scores(reference.scorer(images), asked) if asked else {}
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
        "real": measure_glyphs(real) | {"confidence": reference.reader.read(real).confidences},
    }
    return {"measures": compare_measures(measures["generated"], measures["real"])}


def reading_section(part: GeneratedSet, read: OcrResult, reference: Reference) -> dict:
    """How often the OCR is sure of what it reads, and how often it reads the character that the prompt describes."""
    specs, images = reference.described(part.specs)
    real = reference.reader.read(images) if specs else None
    found = {}
    for name, values, of_real in (
        ("readable", read.confidences >= READABLE, real and real.confidences >= READABLE),
        ("as_described", _as_described(read, part.specs, reference), real and _as_described(real, specs, reference)),
    ):
        known = np.isfinite(values)
        top = None if of_real is None else round(float(np.nanmean(of_real)), 4)
        found[name] = {**_interval(values[known].astype(float), part.prompts[known]), "ceiling": top, "floor": None}
    return found


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


def against(results: ModelResults, rival: Any, plan: Plan, reference: Reference) -> dict:
    """The verdicts against another model's pipeline or `Report`: A is that one, B this one."""
    if isinstance(rival, Report):
        scores, model = rival.scores, rival.metrics["model"]
    else:
        scores = generate_and_score(rival, plan, reference, results.samples).scores
        model = {"source": rival.folder.source, "digest": rival.digest}
    clusters = {name: part.prompts for name, part in results.samples.items() if name in SAMPLED}
    lower = [name for name, higher in MEASURES.items() if not higher]
    return {"a": model, "sections": compare_scores(scores, results.scores, clusters, lower)}


def _rival(options: EvaluationOptions, plan: Plan) -> Any:
    """What --against names: None, a report, or a model's pipeline."""
    if not options.against:
        return None
    if (Path(options.against) / SCORES).is_file():
        return load_report(Path(options.against), plan.as_json())
    return load_pipeline(options.against, device=options.device)


def summary(metrics: dict) -> dict:
    """The few numbers that are quoted."""

    def value(section: str, name: str) -> dict | None:
        found = metrics["adherence"].get(section, {"measures": {}})["measures"].get(name)
        return found and {key: found[key] for key in ("value", "interval", "ceiling", "floor")}

    quoted = {
        "layout": value("layout", "layout"),
        "radical": value("radical", "radical"),
        "pair_layout": value("pair", "layout"),
        "pair_radical": value("pair", "radical"),
        "pair_both": value("pair", "both"),
        "later_radical": value("later", "radical"),
        "later_both": value("later", "both"),
        "place_both": value("place", "both"),
        "component_seen_both": value("component_seen", "both"),
        "component_unseen_both": value("component_unseen", "both"),
        "character_layout": value("character", "layout"),
        "character_radical": value("character", "radical"),
        "character_components_f1": value("character", "components_f1"),
        "character_strokes_error": value("character", "strokes_error"),
        "named_both": value("named", "both"),
        "named_components_f1": value("named", "components_f1"),
        "named_strokes_error": value("named", "strokes_error"),
    }
    if "novelty" not in metrics:  # some sections alone
        return {name: found for name, found in quoted.items() if found}
    for section, found in metrics["reading"].items():
        quoted |= {f"{section}_readable": found["readable"], f"{section}_read": found["as_described"]}
    generated = metrics["novelty"]["generated"]
    return quoted | {
        "kid": {name: found["generated"]["kid"]["value"] for name, found in metrics["fidelity"].items()},
        "copies": generated["copies"]["share"],
        "new_and_well_formed": generated["new_and_well_formed"]["share"],
        "vae_read_the_same": metrics["vae"].get("ocr", {}).get("same_after"),
    }


def save_section(part: GeneratedSet, agreement: np.ndarray, path: Path) -> None:
    """A grid of evenly chosen images, with borders by whether they agree with their prompt."""
    chosen = evenly_spaced_indices(len(part.images), SHOWN)
    borders = [UNKNOWN if np.isnan(agreement[i]) else AGREE if agreement[i] else DISAGREE for i in chosen]
    save_png(image_grid(list(part.images[chosen]), COLUMNS, borders=borders, pad=3), path)
