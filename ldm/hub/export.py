"""`ldm export`: one self-contained folder of stock classes from a finished run (or from another export).

The folder is written beside its destination and renamed at the end, so a half-written export never has its name. Beside
the components it holds what its card shows: generated images, the curves of its trainings, its metrics.
"""

import importlib.util
import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.models.latents import is_tiny, shift_factor
from ldm.models.saving import save_component
from ldm.models.tokenizer import save_tokenizer
from ldm.pipelines.component_classes import CLASSES, LIBRARY
from ldm.pipelines.loading import load_pipeline, no_progress_bars
from ldm.pipelines.model_folder import COMPONENTS, resolve_model
from ldm.pipelines.pipeline import Pipeline
from ldm.utils.atomic_files import exclusive_lock, readable_io_errors, staged
from ldm.utils.errors import UserError
from ldm.utils.image_sizes import resolution_of
from ldm.utils.untrusted_files import read_json

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
BOTH = "both"  # fp32, and fp16 as the variant that stock loading takes with variant="fp16"
LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")  # as the Hub writes them
OURS = ("glyphs", "digits")  # data of which we know the licence that a model of it can have
FORMAT = 1


def export(
    run: str | Path,
    out: Path,
    dtype: str = "fp32",
    name: str | None = None,
    metrics: Path | None = None,
    prompts: Sequence[str] = (),
    license: str | None = None,
) -> Path:
    """Write the model of `run` as one folder.

    Args:
        run: folder of a finished LDM run, or an exported model.
        out: the folder to write; an earlier export there is replaced, any other folder is refused.
        dtype: "fp32" or "fp16" weights, or "both": fp16 ones beside the others.
        name: of the model, in its card and ldm.json; None = the name of `out`.
        metrics: JSON file for the card's table, as `ldm evaluate` writes it; None = that of an earlier export.
        prompts: of the card's images; none = those that the run's sample grids were generated with.
        license: the Hub's name of the weights' licence; None = as it was, and of our own data "apache-2.0".

    Raises: UserError if the run is unfinished or `out` is something else.
    """
    from ldm.hub.gallery import draw_gallery
    from ldm.hub.model_card import training_facts, write_card

    if dtype not in (*DTYPES, BOTH):
        raise UserError(f"--dtype must be one of {', '.join([*DTYPES, BOTH])}, got {dtype!r}")
    if license is not None and not LICENSE.fullmatch(license):
        raise UserError(f"--license must be a name as the Hub has it, such as apache-2.0 or cc-by-4.0, got {license!r}")
    out = Path(out)
    place = out.resolve()
    refuse_foreign(out)
    pipeline = load_pipeline(run, device="cpu", dtype=DTYPES.get(dtype))
    _refuse_own(pipeline, run)
    facts = training_facts(Path(run)) or pipeline.defaults.get("training", {})
    facts |= {"prompts": list(prompts)} if prompts else {}
    license = license or pipeline.defaults.get("license") or ("apache-2.0" if facts.get("data") in OURS else None)
    with readable_io_errors(out, "choose another folder, or make room"), exclusive_lock(place), staged(place) as stage:
        pipeline.defaults |= {"training": facts, "license": license}
        save_folder(pipeline, stage, name or place.name)
        if dtype == BOTH:
            _save_variant(load_pipeline(stage, device="cpu", dtype=torch.float16), stage)
        _write_graphs(stage)
        _keep_pictures(out, stage)
        _keep_records(pipeline, Path(run), metrics, stage)
        draw_gallery(stage, facts.get("prompts", []))
        write_card(stage)
    return out


def save_folder(pipeline: Pipeline, folder: Path, name: str) -> None:
    """Write the components, model_index.json and ldm.json of `pipeline` into the existing `folder`."""
    text = pipeline.text_encoder.config
    tokenizer = pipeline.tokenizer
    text.pad_token_id, text.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    text.eos_token_id = tokenizer.eos_token_id
    for component in pipeline.components:
        _save_component(pipeline, component, folder)
    for component in ("text_encoder", "vae", "unet"):
        config = folder / component / "config.json"
        values = {key: value for key, value in read_json(config).items() if key != "_name_or_path"}  # a path of ours
        if component == "text_encoder":  # else stock loading mixes fp16 text with an fp32 U-Net
            values["dtype"] = "float32"
        _write_json(config, values)
    _write_json(folder / "model_index.json", model_index(pipeline))
    digest = resolve_model(
        folder
    ).digest()  # of the components as they now lie there; ldm.json itself is not part of it
    _write_json(folder / "ldm.json", {**pipeline.defaults, **describe(pipeline), "name": name, "digest": digest})


def _save_component(pipeline: Pipeline, component: str, folder: Path, **options) -> None:
    part = pipeline.components[component]
    if component == "tokenizer":
        return save_tokenizer(part, folder / component)
    if component in ("vae", "unet"):
        options["safe_serialization"] = True
    if component == "text_encoder":  # the key names that every version of transformers reads
        options["state_dict"] = {_prefixed(key): value for key, value in part.state_dict().items()}
    with no_progress_bars():
        save_component(part, folder / component, **options)


def _save_variant(pipeline: Pipeline, stage: Path) -> None:
    """The weights of a `pipeline` in fp16 as files of their own beside the others, whose settings stay as they are."""
    for component in ("text_encoder", "vae", "unet"):
        config = stage / component / "config.json"
        kept = config.read_bytes()
        _save_component(pipeline, component, stage, variant="fp16")
        config.write_bytes(kept)


def _write_graphs(stage: Path) -> None:
    """Graphs for ONNX Runtime, of the weights as they now lie there; a model without them is complete, and slower."""
    if importlib.util.find_spec("onnx") is None:
        log.warning(
            "onnx is not installed, so no graphs were written and sampling on a CPU is slower: pip install onnx"
        )
        return
    from ldm.pipelines.onnx_export import write_graphs

    write_graphs(load_pipeline(stage, device="cpu", engine="torch"), stage)


def _prefixed(key: str) -> str:
    return key if key.startswith("text_model.") else f"text_model.{key}"


def model_index(pipeline: Pipeline) -> dict[str, Any]:
    """The stock index: which library and class each component is of; the optional ones are declared absent."""
    import diffusers

    parts = {c: [LIBRARY.get(c, "diffusers"), type(part).__name__] for c, part in pipeline.components.items()}
    absent = {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
    head = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__}
    return {**head, **dict(sorted({**parts, **absent}.items())), "requires_safety_checker": False}


def describe(pipeline: Pipeline) -> dict[str, Any]:
    """What ldm.json says beside the sampling defaults."""
    return {
        "format": FORMAT,
        "resolution": resolution_of(pipeline.image_shape[1:]),
        "channels": pipeline.vae.config.out_channels,
        "dtype": {dtype: name for name, dtype in DTYPES.items()}.get(pipeline.dtype, str(pipeline.dtype)),
    }


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse_own(pipeline: Pipeline, run: str | Path) -> None:
    """Stop where the standard pipeline could not use a component."""
    if is_tiny(pipeline.vae.config) and shift_factor(pipeline.vae.config):
        raise UserError(
            f"{run} cannot be exported: its AutoencoderTiny has a shift_factor, which diffusers passes over"
        )
    for component, part in pipeline.components.items():
        name = type(part).__name__
        if name not in CLASSES[component]:
            raise UserError(
                f"{run} cannot be exported: diffusers' StableDiffusionPipeline cannot use {name} as its "
                f"{component}. Generate from the run itself: ldm generate --model {run}, or load_pipeline(run)"
            )


def refuse_foreign(out: Path) -> None:
    """Raises: UserError unless `out` is new, empty or an earlier export."""
    if out.is_file():
        raise UserError(f"{out} is a file: name a folder for the export")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not ((out / "model_index.json").is_file() and (out / "ldm.json").is_file()):
        raise UserError(f"{out} holds something that is no earlier export: name a new folder, or empty it")
    known = {*COMPONENTS, "model_index.json", "ldm.json", "README.md", "metrics.json", "gallery", "logs", "lora"}
    strange = sorted(p.name for p in out.iterdir() if p.name not in known and p.suffix.lower() not in (".png", ".jpg"))
    if strange:
        raise UserError(f"{out} also holds {', '.join(strange[:3])}, which replacing it would delete: move that first")


def _keep_pictures(out: Path, stage: Path) -> None:
    """An image grid that was put beside an earlier export stays with the new one."""
    for picture in [p for p in out.glob("*") if p.suffix.lower() in (".png", ".jpg")]:
        shutil.copy2(picture, stage)


def _keep_records(pipeline: Pipeline, run: Path, metrics: Path | None, stage: Path) -> None:
    """The metrics that the card quotes, adapters, and the TensorBoard curves of each training that the run knows."""
    from ldm.hub.model_card import part_runs

    assert pipeline.folder is not None  # it was loaded from one: an earlier export, or final/ of a run
    earlier = pipeline.folder.paths["unet"].parent
    if metrics or (earlier / "metrics.json").is_file():
        found = read_json(metrics or earlier / "metrics.json")
        _write_json(stage / "metrics.json", {"summary": found["summary"]} if "summary" in found else found)
    for name in ("logs", "lora"):  # adapters are in the weights already, and may be wanted alone
        if (earlier / name).is_dir():
            shutil.copytree(earlier / name, stage / name)
    for part, path in part_runs(run).items():
        for i, events in enumerate(sorted(path.glob("logs/**/events.out.tfevents.*"))):
            (stage / "logs" / part).mkdir(parents=True, exist_ok=True)
            began = events.name.split(".")[3]  # its name also tells the machine's
            shutil.copyfile(events, stage / "logs" / part / f"events.out.tfevents.{began}.{i}")
