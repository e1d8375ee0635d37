"""From a model folder to a `Pipeline`: the classes, adapters, device and dtype, and what the networks run in."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ldm.models.lora import merge, read_lora
from ldm.pipelines.autoguidance import load_weak
from ldm.pipelines.component_classes import stock_class
from ldm.pipelines.model_folder import COMPONENTS, ModelFolder, locate
from ldm.pipelines.onnx_runtime import Engine, open_engine
from ldm.pipelines.pipeline import Pipeline
from ldm.utils.errors import UserError
from ldm.utils.untrusted_files import count, read_json

ENGINES = ("auto", "torch", "onnx")


def load_pipeline(
    path_or_id: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    engine: str = "auto",
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
) -> Pipeline:
    """Load a model for drawing.

    Args:
        path_or_id: an exported folder, an LDM run, a Hub id (`user/name`, `user/name@revision`), or None for the
            model that ships with the project.
        device: None = CUDA where there is one, else the CPU.
        dtype: of the networks; None = float32.
        engine: what the networks run in: "torch", "onnx" (ONNX Runtime: a CPU, float32 and a folder with graphs), or
            "auto" for the latter where it can be. Changing a network in place goes on in torch by itself.
        lora: adapters to draw with, a file in the stock format or a folder or run that holds one (`ldm.models.lora`).
        lora_scale: how strongly; 0 = as if there were none, 1 = as they were trained.

    Raises: UserError (one line) if there is no such model or it is incomplete or foreign, or the adapters do not fit.
    """
    folder = locate(path_or_id)
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"device {device!r} is unknown: use cpu, cuda, cuda:N or mps") from error
    dtype = dtype or torch.float32
    parts = {name: _load(folder, name, dtype) for name in COMPONENTS}
    fast = _choose_engine(folder, device, dtype, engine)
    pipeline = Pipeline(**parts, defaults=folder.defaults, folder=folder, engine=fast).to(device)
    pipeline.load_weak = partial(load_weak, load=load_pipeline)
    if lora is not None:
        merge(pipeline.components, read_lora(lora), lora_scale, lora)
        pipeline.lora = lora, lora_scale
    return pipeline


def _choose_engine(folder: ModelFolder, device: torch.device, dtype: torch.dtype, wanted: str) -> Engine | None:
    if wanted not in ENGINES:
        raise UserError(f"engine must be one of {', '.join(ENGINES)}, got {wanted!r}")
    if wanted == "torch":
        return None
    fits = device.type == "cpu" and dtype == torch.float32
    found = open_engine(folder, torch.get_num_threads()) if fits else None
    if wanted == "onnx" and found is None:
        why = f"{folder.source} has no graphs, or onnxruntime is missing" if fits else f"not {dtype} on {device.type}"
        raise UserError(
            f"engine onnx draws on a CPU in float32: {why}; `ldm export` writes graphs, with onnx installed"
        )
    return found


def _load(folder: ModelFolder, component: str, dtype: torch.dtype):
    cls, path = stock_class(component, folder.classes[component]), folder.paths[component]
    if component == "scheduler":
        return _scheduler(cls, path)
    weights = {
        "vae": {"torch_dtype": dtype, "use_safetensors": True},
        "unet": {"torch_dtype": dtype, "use_safetensors": True},
        "text_encoder": {"dtype": dtype, "use_safetensors": True},
    }.get(component, {})
    try:
        if weights:
            _check_size(cls, path)
        with no_progress_bars():
            loaded = cls.from_pretrained(str(path), local_files_only=True, **weights)
    except UserError:
        raise
    except Exception as error:  # each library has its own exceptions for a broken file
        raise UserError(f"{component} in {path} could not be loaded: {str(error).split(chr(10))[0]}") from error
    return loaded.requires_grad_(False) if weights else loaded


def _check_size(cls: type[Any], path: Path) -> None:
    """The libraries fill in weights that are missing: none may be. Raises: UserError."""
    settings = read_json(path / "config.json")
    with torch.device("meta"):  # takes no memory
        described = cls(cls.config_class(**settings)) if hasattr(cls, "config_class") else cls.from_config(settings)
    wanted, there = sum(weight.numel() for weight in described.parameters()), count(path)
    if wanted > there:
        raise UserError(f"{path / 'config.json'} describes {wanted:,} weights; the files beside it hold {there:,}")


def _scheduler(cls: type[Any], path: Path):
    """Built from its settings: `from_pretrained` would import every scheduler it could be swapped for (0.7 s)."""
    known = inspect.signature(cls).parameters
    settings = read_json(path / "scheduler_config.json")
    try:
        return cls(**{name: value for name, value in settings.items() if name in known})
    except Exception as error:  # whatever a wrong setting leads to
        raise UserError(f"scheduler in {path} could not be built: {str(error).splitlines()[0]}") from error


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for each small file."""
    from transformers.utils import logging as its_logging

    shown = its_logging.is_progress_bar_enabled()
    its_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            its_logging.enable_progress_bar()
