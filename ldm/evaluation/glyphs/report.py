"""`ldm evaluate` of a glyph model: generate the fixed prompts, score the images, report numbers with intervals.

Beside each number stand its ceiling, what real characters reach that neither the generator nor the classifier was
trained on; its floor, chance level, what the same images reach with randomly permuted prompts (adherence), or what real
glyphs reach against real glyphs (distances); and the digest of the network that measured it.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.config.settings import DataOptions
from ldm.evaluation.autoencoder_report import vae_report
from ldm.evaluation.comparison import SCORES, Report, compare_scores, load_report, save_scores
from ldm.evaluation.glyphs.adherence import MEASURES, complete_agreement
from ldm.evaluation.glyphs.in_words import lines
from ldm.evaluation.glyphs.prompts import COMPOSITION, DESCRIBED, SAMPLED, SECTIONS
from ldm.evaluation.glyphs.report_page import report_page
from ldm.evaluation.glyphs.samples import ModelResults, Plan, Reference, clip_of, generate_section
from ldm.evaluation.glyphs.sections import (
    adherence_section,
    clip_section,
    fidelity_section,
    learning_section,
    novelty_section,
    reading_section,
    save_section,
    validity_section,
)
from ldm.evaluation.glyphs.text_probe import text_section
from ldm.evaluation.options import EvaluationOptions, write_metrics
from ldm.evaluation.run_loading import open_run
from ldm.models.lora_formats import as_options
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.pipeline import Pipeline
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.atomic_files import atomic_write
from ldm.utils.errors import UserError
from ldm.utils.terminal import Parts

READ = {*SECTIONS, *DESCRIBED}  # by the OCR

log = logging.getLogger(__name__)


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
        "settings": plan.sampling.over(pipeline.defaults),
        "judges": {extractor.name: extractor.digest for extractor in reference.features},
        "classifier": reference.classifier.card["test"],
        "adherence": {name: adherence_section(results, name, reference) for name in results.samples},
        "blank": round(float(np.mean(np.concatenate([part.glyphs.blank for part in results.predictions.values()]))), 4),
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
    quoted["blank"] = metrics["blank"]
    if "novelty" not in metrics:  # some sections alone
        return {name: found for name, found in quoted.items() if found is not None}
    for section, found in metrics["reading"].items():
        quoted |= {f"{section}_readable": found["readable"], f"{section}_read": found["as_described"]}
    generated = metrics["novelty"]["generated"]
    return quoted | {
        "kid": {name: found["generated"]["kid"]["value"] for name, found in metrics["fidelity"].items()},
        "copies": generated["copies"]["share"],
        "new_and_well_formed": generated["new_and_well_formed"]["share"],
        "vae_read_the_same": metrics["vae"].get("ocr", {}).get("same_after"),
    }
