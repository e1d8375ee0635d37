"""A run of `ldm train ldm` opened for measuring: its settings, data, networks and checkpoints, finished or not."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ldm.config.loading import load
from ldm.config.settings import LdmSettings
from ldm.data import Splits, build
from ldm.data.buckets import at_one_size
from ldm.diffusion.process import NoiseProcess
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.model_folder import DEFAULTS
from ldm.pipelines.pipeline import Pipeline
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.errors import UserError


@dataclass
class OpenRun:
    """Attributes: folder of the run; settings it was started with; pipeline, of final/ or of the checkpoint's EMA;
    checkpoint, the newest valid one (or the one that was named), None if there is none.
    """

    folder: Path
    settings: LdmSettings
    pipeline: Pipeline
    checkpoint: Path | None

    @cached_property
    def data(self) -> Splits:
        return at_one_size(build(self.settings.data))

    @cached_property
    def process(self) -> NoiseProcess:
        return NoiseProcess(**self.settings.noise.model_dump())


def open_run(path: Path, device: str | None = None) -> OpenRun:
    """Open runs/<name>/ldm, or one checkpoint below it: runs/<name>/ldm/checkpoints/step-00001000.

    A finished run is read from its final/; an unfinished one is put together as for training, from the runs that it
    was made of, with the EMA weights of its newest checkpoint. Raises: UserError if it is no run of `ldm train ldm`.
    """
    one = path if path.parent.name == "checkpoints" else None
    run = path.parent.parent if one else path
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} has no config.yaml: name a run of `ldm train ldm`, such as runs/<name>/ldm")
    settings = load("ldm", run / "config.yaml")
    found = one or checkpoint.newest(run / "checkpoints")
    if one is None and (run / "final").is_dir():
        return OpenRun(run, settings, load_pipeline(run, device=device), found)
    if found is None:
        raise UserError(f"{run} has neither final/ nor a valid checkpoint yet: let `ldm train ldm` continue")
    return OpenRun(run, settings, _assembled(run, settings, found, device), found)


def saved_weights(folder: Path, kind: str) -> dict[str, Tensor]:
    """Weights in a checkpoint by name, 'unet. ...' and, where it was trained, 'text_encoder. ...'.

    Args: kind: "raw" or "ema"; without an EMA the raw ones are both.
    Raises: UserError if the checkpoint is not valid.
    """
    groups, _ = checkpoint.load(folder)
    raw = {name: value for name, value in groups["model"].items() if name.startswith(("unet.", "text_encoder."))}
    ema = groups.get("ema")
    if kind == "raw" or ema is None:
        return raw
    complete = all(name in raw for name in ema)  # the text encoder was trained too, else the names are the U-Net's own
    return ema if complete else {f"unet.{name}": value for name, value in ema.items()}


def checkpoint_state(folder: Path) -> dict:
    """step, seed and ema_steps of a checkpoint."""
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def put_weights(pipeline: Pipeline, weights: dict[str, Tensor]) -> None:
    """Copy weights (see `saved_weights`) into the pipeline's networks. Raises: UserError if they are of others."""
    own = network_weights(pipeline)
    if not weights.keys() <= own.keys() or any(own[name].shape != value.shape for name, value in weights.items()):
        raise UserError("the checkpoint's weights are of another network than the run's final/")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


@contextmanager
def holding(pipeline: Pipeline, weights: dict[str, Tensor]) -> Iterator[Pipeline]:
    """Within the block the pipeline's networks hold these weights, afterwards their own again."""
    kept = {name: value.detach().clone() for name, value in network_weights(pipeline).items()}
    put_weights(pipeline, weights)
    try:
        yield pipeline
    finally:
        put_weights(pipeline, kept)


def network_weights(pipeline: Pipeline) -> dict[str, Tensor]:
    """The parameters that a run may train, under their checkpoint names."""
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    return {f"{part}.{name}": value for part, net in parts.items() for name, value in net.named_parameters()}


def _fresh(run: Path, settings: LdmSettings, where: torch.device) -> Pipeline:
    """As before training. Of a fine-tuned model it is that model, so that no data are read."""
    if settings.start.model is None:
        from ldm.training.tasks.denoising import denoising_task

        return denoising_task(settings, build(settings.data), run, where).pipeline()
    begun = load_pipeline(settings.start.model, device=str(where), engine="torch")
    networks = (begun.vae, begun.text_encoder, begun.tokenizer, begun.unet)
    defaults = settings.sampling.model_dump(include=set(DEFAULTS))
    return Pipeline(*networks, begun.scheduler, defaults=begun.defaults | defaults)


def _assembled(run: Path, settings: LdmSettings, found: Path, device: str | None) -> Pipeline:
    if settings.start.lora_rank:
        raise UserError(f"{run} trains adapters and has no final/ yet: let `ldm train ldm` run on")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipeline = _fresh(run, settings, where).to(where)
    pipeline.unet.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(False)
    put_weights(pipeline, saved_weights(found, "ema"))
    return pipeline
