"""`ldm export`: one self-contained folder of stock classes from a finished run (or from another export).

The folder is written beside its destination and renamed at the end, so a half-written export never has its name.
"""

import importlib.util
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from ldm.disk import one_writer, staged, telling
from ldm.errors import UserError
from ldm.loading import load_pipeline, no_progress_bars
from ldm.model_folder import COMPONENTS, locate, read_json
from ldm.pipeline import Pipeline
from ldm.stock import CLASSES, LIBRARY

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
FORMAT = 1


def export(
    run: str | Path, out: Path, dtype: str = "fp32", name: str | None = None, metrics: Path | None = None
) -> Path:
    """Write the model of `run` as one folder.

    Args:
        run: folder of a finished LDM run, or an exported model.
        out: the folder to write; an earlier export there is replaced, any other folder is refused.
        dtype: "fp32" or "fp16" weights.
        name: of the model, in its card and ldm.json; None = the name of `out`.
        metrics: JSON file for the card's table, as `ldm evaluate` writes it.

    Raises: UserError if the run is unfinished or `out` is something else.
    """
    from ldm.card import training_facts, write_card

    if dtype not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    out = Path(out)
    place = out.resolve()
    _refuse_foreign(out)
    pipeline = load_pipeline(run, device="cpu", dtype=DTYPES[dtype])
    _refuse_own(pipeline, run)
    with telling(out, "choose another folder, or make room"), one_writer(place), staged(place) as stage:
        pipeline.defaults |= {"training": training_facts(Path(run)) or pipeline.defaults.get("training", {})}
        save_folder(pipeline, stage, name or place.name)
        _write_graphs(stage)
        _keep_pictures(out, stage)
        write_card(stage, read_json(metrics) if metrics else {})
    return out


def save_folder(pipeline: Pipeline, folder: Path, name: str) -> None:
    """Write the components, model_index.json and ldm.json of `pipeline` into the existing `folder`."""
    text = pipeline.text_encoder.config
    tokenizer = pipeline.tokenizer
    text.pad_token_id, text.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    text.eos_token_id = tokenizer.eos_token_id
    for component, part in pipeline.components.items():
        safe: dict[str, Any] = {"safe_serialization": True} if component in ("vae", "unet") else {}
        if component == "text_encoder":  # the key names that every version of transformers reads
            safe = {"state_dict": {_prefixed(key): value for key, value in part.state_dict().items()}}
        with no_progress_bars():
            part.save_pretrained(str(folder / component), **safe)
    for component in ("text_encoder", "vae", "unet"):
        config = folder / component / "config.json"
        values = {key: value for key, value in read_json(config).items() if key != "_name_or_path"}  # a path of ours
        if component == "text_encoder":  # else stock loading mixes fp16 text with an fp32 U-Net
            values["dtype"] = "float32"
        _write_json(config, values)
    _write_json(folder / "model_index.json", model_index(pipeline))
    digest = locate(folder).digest()  # of the components as they now lie there; ldm.json itself is not part of it
    _write_json(folder / "ldm.json", {**pipeline.defaults, **describe(pipeline), "name": name, "digest": digest})


def _write_graphs(stage: Path) -> None:
    """Graphs for ONNX Runtime, of the weights as they now lie there; a model without them is whole, and slower."""
    if importlib.util.find_spec("onnx") is None:
        log.warning("onnx is not installed, so no graphs were written and a CPU draws more slowly: pip install onnx")
        return
    from ldm.graphs import write_graphs

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
    factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    return {
        "format": FORMAT,
        "resolution": pipeline.latent_shape[1] * factor,
        "channels": pipeline.vae.config.out_channels,
        "dtype": {dtype: name for name, dtype in DTYPES.items()}.get(pipeline.dtype, str(pipeline.dtype)),
    }


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse_own(pipeline: Pipeline, run: str | Path) -> None:
    """Stop where the stock pipeline could not draw with a component."""
    for component, part in pipeline.components.items():
        name = type(part).__name__
        if name not in CLASSES[component]:
            raise UserError(
                f"{run} cannot be exported: diffusers' StableDiffusionPipeline cannot draw with {name} as its "
                f"{component}. Draw from the run itself: ldm generate --model {run}, or load_pipeline(run)"
            )


def _refuse_foreign(out: Path) -> None:
    if out.is_file():
        raise UserError(f"{out} is a file: name a folder for the export")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not ((out / "model_index.json").is_file() and (out / "ldm.json").is_file()):
        raise UserError(f"{out} holds something that is no earlier export: name a new folder, or empty it")
    known = {*COMPONENTS, "model_index.json", "ldm.json", "README.md", "metrics.json"}
    strange = sorted(p.name for p in out.iterdir() if p.name not in known and p.suffix.lower() not in (".png", ".jpg"))
    if strange:
        raise UserError(f"{out} also holds {', '.join(strange[:3])}, which replacing it would delete: move that first")


def _keep_pictures(out: Path, stage: Path) -> None:
    """A contact sheet that was put beside an earlier export stays with the new one."""
    for picture in [p for p in out.glob("*") if p.suffix.lower() in (".png", ".jpg")]:
        shutil.copy2(picture, stage)
