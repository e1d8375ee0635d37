"""From a model folder to a `Pipeline`: the classes, adapters, device and dtype, and what the networks run in."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.models.lora import merge, read_lora
from ldm.models.tokenizer import restore_normalizer
from ldm.pipelines.arguments import check_dtype
from ldm.pipelines.autoguidance import load_weak
from ldm.pipelines.component_classes import stock_class
from ldm.pipelines.model_folder import COMPONENTS, ModelFolder, resolve_model
from ldm.pipelines.networks import OnDisk
from ldm.pipelines.onnx_runtime import Engine, open_engine
from ldm.pipelines.pipeline import Pipeline
from ldm.utils.errors import UserError
from ldm.utils.runtime import no_progress_bars
from ldm.utils.untrusted_files import count, read_json

ENGINES = ("auto", "torch", "onnx")


def load_pipeline(
    path_or_id: str | Path | ModelFolder | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    engine: str = "auto",
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    variant: str | None = None,
) -> Pipeline:
    """Load a model to generate images with.

    Args:
        path_or_id: an exported folder, an LDM run, a Hub id (`user/name`, `user/name@revision`), what `resolve_model`
            made of one, or None for the model that ships with the project.
        device: None = CUDA where there is one, else the CPU.
        dtype: of the networks, or its name ("float16"); None = float32.
        engine: what the networks run in. "torch": modules, which may be changed in any way. "onnx": ONNX Runtime, which
            needs a CPU, float32, a folder with graphs and no adapters; the networks are those on disk, and asking for
            `pipeline.vae`, `.text_encoder` or `.unet` is an error. "auto": ONNX Runtime where it can be, each network
            until it is asked for (`pipeline.unet`, `.components`, `.to(...)`) and in torch from then on, so that
            whatever is done to it counts. Scheduler, tokenizer and defaults may be changed with every engine.
        lora: adapters, a file in the format of diffusers or a folder or run that holds one (`ldm.models.lora`).
        lora_scale: how strongly; 0 = as if there were none, 1 = as they were trained.
        variant: read the weights from the files with it in their names, such as "fp16".

    Raises: UserError (one line) if there is no such model or it is incomplete or not allowed, or the adapters do not
    fit; ValueError if it has no such variant.
    """
    folder = path_or_id if isinstance(path_or_id, ModelFolder) else resolve_model(path_or_id, variant)
    where, dtype = _device(device), _dtype(dtype)
    if (where.type, dtype) == ("mps", torch.float64):
        raise UserError("an Apple GPU (mps) has no float64: use float32, or device cpu")
    graphs = _choose_engine(folder, where, dtype, engine if variant is None else "torch", lora is not None)
    parts = {name: _load(folder, name, dtype, graphs is not None, variant) for name in COMPONENTS}
    pipeline = Pipeline(**parts, defaults=folder.defaults, folder=folder, engine=graphs, fixed=engine == "onnx")
    pipeline.to(where)
    pipeline.load_weak = partial(load_weak, load=load_pipeline)
    if lora is not None:
        merge(pipeline.components, read_lora(lora), lora_scale, lora)
        pipeline.lora = lora, lora_scale
    return pipeline


Pipeline._load = load_pipeline


def _device(device: str | torch.device | None) -> torch.device:
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"device {device!r} is unknown: use cpu, cuda, cuda:N or mps") from error


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    try:
        return check_dtype(torch.float32 if dtype is None else dtype)
    except ValueError as error:
        raise UserError(str(error)) from None


def _choose_engine(
    folder: ModelFolder, device: torch.device, dtype: torch.dtype, wanted: str, adapted: bool
) -> Engine | None:
    """The graphs to compute with, or None for torch. Raises: UserError for "onnx" where that cannot be."""
    if wanted not in ENGINES:
        raise UserError(f"engine must be one of {', '.join(ENGINES)}, got {wanted!r}")
    if wanted == "torch":
        return None
    fits = device.type == "cpu" and dtype == torch.float32 and not adapted
    graphs = open_engine(folder, torch.get_num_threads()) if fits else None
    if wanted == "onnx" and graphs is None:
        why = "not with adapters" if adapted else f"not {dtype} on {device.type}"
        if fits:
            why = f"{folder.source} has no graphs, or onnxruntime is missing"
        raise UserError(f"engine onnx runs on a CPU in float32: {why}; `ldm export` writes graphs, with onnx installed")
    return graphs


def _load(folder: ModelFolder, component: str, dtype: torch.dtype, lazily: bool, variant: str | None) -> Any:
    """A component; a network `lazily` as one `OnDisk`."""
    cls, path = stock_class(component, folder.classes[component]), folder.paths[component]
    if component == "scheduler":
        return _scheduler(cls, path)
    with _readable_errors(component, path):
        if component == "tokenizer":
            tokenizer: Any = cls
            return restore_normalizer(tokenizer.from_pretrained(str(path), local_files_only=True), path)
        config = _checked_config(cls, path)
    if variant is not None and not any(path.glob(f"*.{variant}.safetensors")):
        raise ValueError(f"You are trying to load the model files of the `variant={variant}`, which {path} lacks")
    load = partial(_network, component, cls, path, dtype, variant)
    return OnDisk(config, load) if lazily else load()


def _network(component: str, cls: type[Any], path: Path, dtype: torch.dtype, variant: str | None) -> nn.Module:
    as_dtype: dict[str, Any] = {"dtype" if component == "text_encoder" else "torch_dtype": dtype, "variant": variant}
    with _readable_errors(component, path), no_progress_bars():
        loaded = cls.from_pretrained(str(path), local_files_only=True, use_safetensors=True, **as_dtype)
    return loaded.requires_grad_(False)


@contextmanager
def _readable_errors(component: str, path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each library has its own exceptions for a broken file
        raise UserError(f"{component} in {path} could not be loaded: {str(error).split(chr(10))[0]}") from error


def _checked_config(cls: type[Any], path: Path) -> Any:
    """The config of a network whose weights are all there: the libraries would fill in others. Raises: UserError."""
    settings = read_json(path / "config.json")
    with torch.device("meta"):  # takes no memory
        described = cls(cls.config_class(**settings)) if hasattr(cls, "config_class") else cls.from_config(settings)
    wanted, there = sum(weight.numel() for weight in described.parameters()), count(path)
    if wanted > there:
        raise UserError(f"{path / 'config.json'} describes {wanted:,} weights; the files beside it hold {there:,}")
    return described.config


def _scheduler(cls: type[Any], path: Path):
    """Built from its settings: `from_pretrained` would import every scheduler it could be swapped for (0.7 s)."""
    known = inspect.signature(cls).parameters
    settings = read_json(path / "scheduler_config.json")
    try:
        return cls(**{name: value for name, value in settings.items() if name in known})
    except Exception as error:  # whatever a wrong setting leads to
        raise UserError(f"scheduler in {path} could not be built: {str(error).splitlines()[0]}") from error
