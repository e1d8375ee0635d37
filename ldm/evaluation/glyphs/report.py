"""The measurements behind `ldm evaluate` of a glyph model: prompts in, pictures judged, numbers with intervals out.

No number stands alone. Beside each is its ceiling, what real characters get that neither model nor judge has seen, and
its floor, what the same pictures get when the prompts are dealt out anew (adherence) or what real glyphs get against
real glyphs (distances); and the digest of the network that saw it.
"""

import json
import logging
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.config.settings import DataOptions
from ldm.data import spread
from ldm.data.glyphs.dataset import GlyphData
from ldm.evaluation import loss_by_time as denoising
from ldm.evaluation.autoencoder_report import vae_report
from ldm.evaluation.feature_extractors import ClipJudge
from ldm.evaluation.generation import AGREE, DISAGREE, UNJUDGED, Drawing
from ldm.evaluation.glyphs.adherence import Judged, Scores, agreement, ceiling, shuffled
from ldm.evaluation.glyphs.comparison import SCORES, compare, load_scores, save_scores
from ldm.evaluation.glyphs.novelty import READABLE, Neighbours, Pool, distinctness, nearest, novelty, to_size
from ldm.evaluation.glyphs.prompts import SECTIONS
from ldm.evaluation.glyphs.report_page import report_page
from ldm.evaluation.glyphs.samples import Drawn, Plan, Reference, clip_of, draw_section, pictures
from ldm.evaluation.glyphs.validity import compare as compare_validity
from ldm.evaluation.glyphs.validity import measure as measure_validity
from ldm.evaluation.metrics import corruptions as spoil
from ldm.evaluation.metrics.confidence import bootstrap, over_seeds
from ldm.evaluation.metrics.distribution_distances import yardstick
from ldm.evaluation.metrics.proportions import share, wilson
from ldm.models.clip import recall_at
from ldm.models.lora import as_options
from ldm.pipelines.loading import load_pipeline
from ldm.utils.atomic_files import write_whole
from ldm.utils.image_grid import image_grid, save_png

COLUMNS = 16
SHOWN = 96  # pictures on a sheet
UNSEEN = 512  # real characters whose nearest training glyph is looked for
DEALS = 20  # the floor is the mean of so many deals
SPOILERS = {
    "mirrored": lambda images: spoil.mirrored(images),
    "blurred": lambda images: spoil.blurred(images, 1.5 * images.shape[1] / 64),
    "halves exchanged": lambda images: np.roll(images, images.shape[2] // 2, axis=2),
}

Reading = tuple[list[str], np.ndarray]  # of `GlyphReader.read`

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examined:
    """A model's pictures, what the judges say of them, and how they score."""

    digest: str
    drawn: dict[str, Drawn]
    judged: dict[str, Judged]
    scores: dict[str, Scores]  # section -> measure -> float64 (n,), nan where it is not asked for


def evaluate(model: str | Path | None, args: Namespace) -> dict:
    """Measure a glyph model; write metrics.json, index.html, scores.npz and PNG sheets; return the metrics.

    Args:
        model: exported folder, LDM run, Hub id, or None for the shipped one.
        args: of `ldm evaluate`: output, samples, seed, steps, guidance, batch, device, cache_dir, lora, against,
            features, clip.
    Raises: UserError when the font package, the OCR or the classifier is missing.
    """
    started, output = time.monotonic(), args.output
    plan = Plan(args.samples, seed=args.seed, drawing=Drawing(args.steps, args.guidance, args.batch))
    pipeline = load_pipeline(model, device=args.device, **as_options(args.lora))
    reference = Reference(pipeline, DataOptions(cache_dir=args.cache_dir), args.features, clip_of(pipeline, args.clip))
    rival = _rival(args, plan)  # now, and not after minutes of drawing, is the time to find that there is none
    metrics, found = measure(pipeline, plan, reference, output)
    metrics["model"]["lora"] = args.lora
    if model is not None and args.lora is None and (Path(model) / "log.jsonl").is_file():
        metrics["learning"] = learning_section(Path(model), plan, args.device)
    if rival is not None:
        metrics["against"] = against(found, rival, plan, reference)
    metrics["summary"] = summary(metrics)
    metrics["seconds"] = round(time.monotonic() - started)
    save_scores(found.scores, output)
    write_whole(output / "metrics.json", (json.dumps(metrics, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(output / "index.html", report_page(metrics, output).encode())
    print(json.dumps(metrics["summary"], indent=1))
    print(f"{output / 'index.html'}: numbers and pictures in one file")
    return metrics


def measure(pipeline, plan: Plan, reference: Reference, output: Path) -> tuple[dict[str, Any], Examined]:
    """All sections of the report; sheets of the pictures go to `output`."""
    found = examine(pipeline, plan, reference)
    for name, part in found.drawn.items():
        save_section(part, agreement(found.scores[name]), output / f"{name}.png")
    described = found.drawn["character"]
    read = {name: reference.reader.read(part.images) for name, part in found.drawn.items()}
    metrics = {
        "format": 2,
        "model": {"source": pipeline.folder.source if pipeline.folder else None, "digest": pipeline.digest},
        "plan": _as_json(plan),
        "settings": {name: pipeline.defaults.get(name) for name in ("num_inference_steps", "guidance_scale")},
        "judges": {name: digest for name, (digest, _) in reference.features.items()},
        "classifier": reference.classifier.card["test"],
        "adherence": {name: adherence_section(found, name, reference) for name in found.drawn},
        "fidelity": fidelity_section(described, reference),
        **({"clip": clip_section(described, reference, reference.clip)} if reference.clip else {}),
        "validity": validity_section(described, read["character"][1], reference),
        "novelty": novelty_section(found, read, reference, output),
        "vae": vae_report(
            pipeline.networks.module("vae"), reference.own["validation"], reference.reader, output, plan.characters
        ),
    }
    return metrics, found


def examine(pipeline, plan: Plan, reference: Reference) -> Examined:
    """Draw every section and let the judges look."""
    drawn = {name: draw_section(pipeline, name, plan) for name in SECTIONS}
    judged = {name: reference.judge(part.images) for name, part in drawn.items()}
    scores = {name: reference.judge.scores(judged[name], part.asked) for name, part in drawn.items()}
    return Examined(pipeline.digest, drawn, judged, scores)


def adherence_section(found: Examined, name: str, reference: Reference) -> dict:
    """Per measure: value with interval, each set's mean and their spread, ceiling and floor; per prompt the share."""
    part, scores = found.drawn[name], found.scores[name]
    rng = np.random.default_rng(0)
    deals = [reference.judge.scores(found.judged[name], shuffled(part.asked, rng)) for _ in range(DEALS)]
    top = ceiling(part.asked, reference.real[0], reference.real[2])
    measures: dict[str, Any] = {}
    for measure_, values in scores.items():
        known = np.isfinite(values)
        if not known.any():
            continue
        # The characters stand for all characters; the other lists are complete, and only the pictures are a sample.
        clusters = part.prompts[known] if name == "character" else None
        measures[measure_] = {
            **_interval(values[known], clusters),
            "sets": over_seeds([values[known & (part.sets == s)].mean() for s in np.unique(part.sets)]),
            "ceiling": top.get(measure_),
            "floor": float(np.mean([np.nanmean(deal[measure_]) for deal in deals])),
        }
    return {"measures": measures, "prompts": [] if name == "character" else _per_prompt(part, agreement(scores))}


def _interval(values: np.ndarray, clusters: np.ndarray | None) -> dict:
    """By bootstrap; of values that are all 0 or all 1, of which every draw is alike, Wilson's of as many prompts."""
    found = bootstrap(values, clusters=clusters)
    if found.error == 0 and found.value in (0, 1):
        low, high = wilson(int(found.value) * found.clusters, found.clusters)
        return found.rounded() | {"interval": [round(low, 4), round(high, 4)]}
    return found.rounded()


def _per_prompt(part: Drawn, right: np.ndarray) -> list[dict]:
    """The share that agrees in all that is asked, prompt by prompt, where that can be judged."""
    rows = []
    for i, one in part.numbered:
        mine = right[part.prompts == i]
        if np.isfinite(mine).any():
            rows.append({"prompt": one.prompt, "agreement": share(mine == 1)})
    return rows


def fidelity_section(part: Drawn, reference: Reference) -> dict:
    """Distances of pictures of the test split's captions to that split, on the features of each network.

    The floor is real characters of the validation split; the ceilings are those characters, spoiled.
    """
    other = reference.own["validation"]
    real, floor = pictures(reference.own["test"]), pictures(other, spread(len(other), len(part.images)))
    section = {}
    for name, (digest, embed) in reference.features.items():
        spoiled = {key: embed(make(floor)) for key, make in SPOILERS.items()}
        found = yardstick(embed(part.images), embed(real), spoiled, embed(floor))
        section[name] = {"digest": digest} | found
        log.info("fidelity by the %s: measured", name)
    return section


def clip_section(part: Drawn, reference: Reference, clip: ClipJudge) -> dict:
    """Cosine of each picture and its prompt, and how often the prompt is among the k nearest of all prompts of its set.

    The ceiling is that of real characters of the test split with the same prompts, the floor that of dealt prompts.
    """
    first = part.sets == part.sets[0]
    prompts = [one.prompt for one in part.asked]
    image, text = clip(part.images, prompts)
    codepoints = {ord(reference.own["test"].meta(i)["char"]): i for i in range(len(reference.own["test"]))}
    there = [i for i in np.flatnonzero(first).tolist() if part.asked[i].codepoint in codepoints]
    real = pictures(reference.own["test"], [codepoints[part.asked[i].codepoint] for i in there])
    real_image, real_text = clip(real, [prompts[i] for i in there])
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
    """Of a run: the losses over its training, and at every time the loss beside predictors that know little."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    names = ("loss", "train_loss", "gap", "judged/layout", "judged/radical")
    curves = {n: [(row["step"], row[key]) for row in rows if key in row] for n in names for key in [f"ema/{n}"]}
    measured = denoising.evaluate(run, denoising.Plan(limit=min(256, 7 * plan.samples)), device)
    return {"curves": {name: points for name, points in curves.items() if len(points) > 1}, **measured}


def validity_section(part: Drawn, confidence: np.ndarray, reference: Reference) -> dict:
    """Ink, strokes and the OCR's confidence (n,) in the described characters' pictures beside those of real ones."""
    real = pictures(reference.own["test"])
    seen = {"generated": (part.images, confidence), "real": (real, reference.reader.read(real)[1])}
    found = {name: measure_validity(images) | {"confidence": sure} for name, (images, sure) in seen.items()}
    readable = {name: share(measures["confidence"] >= READABLE) for name, measures in found.items()}
    return {"measures": compare_validity(found["generated"], found["real"]), "readable": readable}


def novelty_section(found: Examined, read: dict[str, Reading], reference: Reference, output: Path) -> dict:
    """How near the pictures come to training glyphs, beside how near unseen characters do; the nearest on a sheet.

    `read`: what the OCR reads in each section, and how surely.
    """
    train, unseen = reference.both["train"], reference.both["test"]
    pool = Pool(pictures(train))
    images = np.concatenate([part.images for part in found.drawn.values()])
    right = np.concatenate([agreement(scores) == 1 for scores in found.scores.values()])
    text = [one for name in found.drawn for one in read[name][0]]
    confidence = np.concatenate([read[name][1] for name in found.drawn])
    near = nearest(images, pool)
    save_nearest(images, near, train, output / "nearest.png")
    prompts = {one.prompt: part.images[part.prompts == i] for part in _lists(found) for i, one in part.numbered}
    return {
        "generated": novelty(near, right, text, confidence),
        "real_unseen": novelty(nearest(pictures(unseen, spread(len(unseen), UNSEEN)), pool)),
        **distinctness(prompts),
    }


def save_nearest(images: np.ndarray, near: Neighbours, train: GlyphData, path: Path) -> None:
    """A gallery: the pictures nearest to a training glyph, then some from the whole ranking, each above that glyph."""
    ranked = np.argsort(-near.similarity)
    chosen = [*ranked[:COLUMNS], *ranked[spread(len(ranked), 3 * COLUMNS)]]
    shown, labels = [], []
    for start in range(0, len(chosen), COLUMNS):
        row = chosen[start : start + COLUMNS]
        neighbours, empty = near.index[row].tolist(), [""] * (COLUMNS - len(row))
        blank = [np.full((64, 64), 255, np.uint8)] * len(empty)
        shown += [*to_size(images[row]), *blank, *to_size(pictures(train, neighbours)), *blank]
        labels += [f"{near.similarity[i]:.2f}" for i in row] + empty
        labels += [train.ids[i].split("/")[0] for i in neighbours] + empty
    save_png(image_grid(shown, COLUMNS, labels=labels), path)


def _lists(found: Examined) -> list[Drawn]:
    """The sections in which a prompt is drawn more than once for each set."""
    return [part for name, part in found.drawn.items() if name != "character"]


def against(found: Examined, rival, plan: Plan, reference: Reference) -> dict:
    """Another model's pipeline, or the scores and metrics of its report, and the verdicts: A is it, B this one."""
    if isinstance(rival, tuple):
        scores, model = rival[0], rival[1]["model"]
    else:
        examined = examine(rival, plan, reference)
        scores, model = examined.scores, {"source": rival.folder.source, "digest": examined.digest}
    prompts = {name: part.prompts for name, part in found.drawn.items()}
    return {"a": model, "sections": compare(scores, found.scores, prompts)}


def _rival(args: Namespace, plan: Plan):
    """What --against names: None, a report's scores and metrics, or a model to draw with."""
    if not args.against:
        return None
    report = Path(args.against)
    if (report / SCORES).is_file():
        return load_scores(report, _as_json(plan))
    return load_pipeline(args.against, device=args.device)


def summary(metrics: dict) -> dict:
    """The few numbers that are quoted."""
    sections, novel = metrics["adherence"], metrics["novelty"]["generated"]

    def value(section: str, name: str) -> dict | None:
        found = sections[section]["measures"].get(name)
        return found and {key: found[key] for key in ("value", "interval", "ceiling", "floor")}

    return {
        "layout": value("layout", "layout"),
        "radical": value("radical", "radical"),
        "pair_layout": value("pair", "layout"),
        "pair_radical": value("pair", "radical"),
        "character_layout": value("character", "layout"),
        "character_radical": value("character", "radical"),
        "character_components_f1": value("character", "components_f1"),
        "character_strokes_error": value("character", "strokes_error"),
        "kid": {name: found["generated"]["kid"]["value"] for name, found in metrics["fidelity"].items()},
        "copies": novel["copies"]["share"],
        "new_and_well_formed": novel["new_and_well_formed"]["share"],
        "vae_read_the_same": metrics["vae"].get("ocr", {}).get("same_after"),
    }


def save_section(part: Drawn, right: np.ndarray, path: Path) -> None:
    """A sheet of the first pictures, spread over the prompts, framed by whether they are what was asked for."""
    chosen = spread(len(part.images), SHOWN)
    borders = [UNJUDGED if np.isnan(right[i]) else AGREE if right[i] else DISAGREE for i in chosen]
    save_png(image_grid(list(part.images[chosen]), COLUMNS, borders=borders, pad=3), path)


def _as_json(plan: Plan) -> dict:
    """What decides the pictures; the batch does not."""
    drawing = {"steps": plan.drawing.steps, "guidance": plan.drawing.guidance}
    return {"samples": plan.samples, "sets": plan.sets, "seed": plan.seed, **drawing}
