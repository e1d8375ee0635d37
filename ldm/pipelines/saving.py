"""A pipeline as the model folder that diffusers' `StableDiffusionPipeline` reads."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ldm.models.latents import is_tiny, shift_factor
from ldm.models.saving import save_component
from ldm.models.tokenizer import save_tokenizer
from ldm.pipelines.component_classes import CLASSES, LIBRARY
from ldm.pipelines.model_folder import resolve_model
from ldm.pipelines.networks import NETWORKS
from ldm.utils.atomic_files import exclusive_lock, readable_io_errors
from ldm.utils.errors import UserError
from ldm.utils.image_sizes import resolution_of
from ldm.utils.runtime import no_progress_bars
from ldm.utils.untrusted_files import read_json

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
FORMAT = 1


def save_folder(pipeline: Any, folder: Path, name: str, variant: str | None = None) -> None:
    """Write the components, model_index.json and ldm.json of `pipeline` into the existing `folder`."""
    text = pipeline.text_encoder.config
    tokenizer = pipeline.tokenizer
    text.pad_token_id, text.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    text.eos_token_id = tokenizer.eos_token_id
    for component in pipeline.components:
        _save_component(pipeline, component, folder, **({"variant": variant} if component in NETWORKS else {}))
    for component in NETWORKS:
        config = folder / component / "config.json"
        values = {key: value for key, value in read_json(config).items() if key != "_name_or_path"}  # a path of ours
        if component == "text_encoder":  # else stock loading mixes fp16 text with an fp32 U-Net
            values["dtype"] = "float32"
        write_json(config, values)
    write_json(folder / "model_index.json", model_index(pipeline))
    digest = resolve_model(folder).digest()  # of the components as they now lie there; ldm.json is no part of it
    write_json(folder / "ldm.json", {**pipeline.defaults, **describe(pipeline), "name": name, "digest": digest})


def _save_component(pipeline: Any, component: str, folder: Path, **options) -> None:
    part = pipeline.components[component]
    if component == "tokenizer":
        return save_tokenizer(part, folder / component)
    if component in ("vae", "unet"):
        options["safe_serialization"] = True
    if component == "text_encoder":  # the key names that every version of transformers reads
        options["state_dict"] = {_prefixed(key): value for key, value in part.state_dict().items()}
    with no_progress_bars():
        save_component(part, folder / component, **options)


def save_variant(pipeline: Any, folder: Path, variant: str = "fp16") -> None:
    """The weights of a `pipeline` as files of their own beside the others, whose settings stay as they are."""
    for component in NETWORKS:
        config = folder / component / "config.json"
        kept = config.read_bytes()
        _save_component(pipeline, component, folder, variant=variant)
        config.write_bytes(kept)


def save_pretrained(pipeline: Any, folder: Path, variant: str | None = None) -> None:
    """Put a pipeline's components into `folder` in place of those that are there, graphs too; the rest stays.

    Args: variant: in the names of the weights' files.
    Raises: UserError for components that only we have, and where the folder cannot be written.
    """
    refuse_own(pipeline, "the pipeline")
    place = folder.resolve()
    with readable_io_errors(folder, "choose another folder, or make room"), exclusive_lock(place):
        place.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place, prefix=".saving-") as stage:
            save_folder(pipeline, Path(stage), place.name, variant)
            for written in Path(stage).iterdir():
                if (place / written.name).is_dir():
                    shutil.rmtree(place / written.name)
                written.replace(place / written.name)


def _prefixed(key: str) -> str:
    return key if key.startswith("text_model.") else f"text_model.{key}"


def model_index(pipeline: Any) -> dict[str, Any]:
    """The stock index: which library and class each component is of; the optional ones are declared absent."""
    import diffusers

    parts = {c: [LIBRARY.get(c, "diffusers"), type(part).__name__] for c, part in pipeline.components.items()}
    absent = {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
    head = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__}
    return {**head, **dict(sorted({**parts, **absent}.items())), "requires_safety_checker": False}


def describe(pipeline: Any) -> dict[str, Any]:
    """What ldm.json says beside the sampling defaults."""
    return {
        "format": FORMAT,
        "resolution": resolution_of(pipeline.image_shape[1:]),
        "channels": pipeline.vae.config.out_channels,
        "dtype": {dtype: name for name, dtype in DTYPES.items()}.get(pipeline.dtype, str(pipeline.dtype)),
    }


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def refuse_own(pipeline: Any, source: str) -> None:
    """Raises: UserError where the standard pipeline could not use a component."""
    if is_tiny(pipeline.vae.config) and shift_factor(pipeline.vae.config):
        raise UserError(
            f"{source} cannot be exported: its AutoencoderTiny has a shift_factor, which diffusers passes over"
        )
    for component, part in pipeline.components.items():
        name = type(part).__name__
        if name not in CLASSES[component]:
            raise UserError(
                f"{source} cannot be exported: diffusers' StableDiffusionPipeline cannot use {name} as its "
                f"{component}. Generate from the run itself: ldm generate --model {source}, or load_pipeline(run)"
            )
