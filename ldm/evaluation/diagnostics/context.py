"""The run under examination; each property is read or measured once, on first use."""

import math
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.config.loading import load
from ldm.config.settings import LdmSettings
from ldm.config.yaml_io import dump
from ldm.data import Splits, build, evenly_spaced_indices
from ldm.data.buckets import at_one_size
from ldm.diffusion.process import NoiseProcess
from ldm.evaluation import loss_by_time
from ldm.evaluation.run_loading import OpenRun, checkpoint_state, open_run
from ldm.models.identity_autoencoder import IdentityAutoencoder
from ldm.pipelines.diffusers_schedulers import process_of
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.model_folder import recorded_config, resolve_model
from ldm.pipelines.pipeline import Pipeline
from ldm.utils.errors import UserError

SAMPLES = 16  # images
SMALL = 16  # numbers of a point or other small item


@dataclass
class RunContext:
    """Attributes: path that the user named; limit of items of each split; device."""

    path: Path
    limit: int
    device: str | None = None
    stage = "ldm"  # by which train_*.py the run was made

    def __post_init__(self):
        if self.is_run:
            return
        resolve_model(self.path)  # says what there is to name, if this is nothing

    @cached_property
    def is_run(self) -> bool:
        """Whether it is a run or a checkpoint of one, and not an exported model."""
        return self.path.parent.name == "checkpoints" or (self.path / "config.yaml").is_file()

    @cached_property
    def opened(self) -> OpenRun | None:
        return open_run(self.path, self.device) if self.is_run else None

    @cached_property
    def pipeline(self) -> Pipeline:
        return self.opened.pipeline if self.opened else load_pipeline(self.path, device=self.device)

    @cached_property
    def settings(self) -> LdmSettings | None:
        """What it was trained with; None for an export that does not say so in today's words."""
        if self.opened:
            return self.opened.settings
        if not (recorded := recorded_config(self.pipeline.defaults)):
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.yaml"
            path.write_text(dump(recorded), encoding="utf-8")
            try:
                return load("ldm", path)
            except UserError:
                return None

    @property
    def unconditional(self) -> bool:
        return self.settings is not None and self.settings.text.source == "none"

    @cached_property
    def data(self) -> Splits:
        if self.settings is None:
            raise UserError("it does not say which data it was trained on")
        if self.opened:
            return self.opened.data
        return at_one_size(build(self.settings.data))

    @cached_property
    def readable(self) -> Splits | None:
        """The data, or None where they are not known or cannot be read, of which there is a check."""
        try:
            return self.data
        except UserError:
            return None

    @cached_property
    def process(self) -> NoiseProcess:
        """What it was trained with, or else what its scheduler says."""
        if self.settings is None:
            return process_of(self.pipeline.scheduler)
        return NoiseProcess(**self.settings.noise.model_dump())

    @property
    def identity(self) -> bool:
        """Whether there is no autoencoder: pixels or points."""
        return isinstance(self.pipeline.vae, IdentityAutoencoder)

    @cached_property
    def state(self) -> dict | None:
        """Of the newest checkpoint: step, ema_steps, digests of the parts; None without one."""
        found = self.opened.checkpoint if self.opened else None
        return checkpoint_state(found) if found else None

    # ---- measured ---------------------------------------------------------------------------------------------------

    @property
    def scale(self) -> int:
        """How many times as many items are measured when each has few numbers, as points do."""
        return 16 if math.prod(self.pipeline.latent_shape) <= SMALL else 1

    @property
    def plan(self) -> loss_by_time.Plan:
        return loss_by_time.Plan(limit=self.scale * self.limit, batch=self.scale * 32)

    @cached_property
    def items(self) -> list[loss_by_time.Items]:
        """Of training and of validation."""
        parts, told = (self.data.train, self.data.validation), not self.unconditional
        return [loss_by_time.choose_items(self.pipeline, data, self.plan, told) for data in parts]

    @cached_property
    def losses(self) -> dict:
        """See `ldm.evaluation.loss_by_time.measure`."""
        told = (
            loss_by_time.CAPTIONS
            if self.data.train.has_captions and not self.unconditional
            else loss_by_time.CAPTIONS[:1]
        )
        found = [
            loss_by_time.denoising_losses(self.pipeline, self.process, part, self.plan, told) for part in self.items
        ]
        return loss_by_time.summarise(self.process, self.items, found, self.plan)

    @cached_property
    def _prompted(self) -> list[int]:
        return evenly_spaced_indices(len(self.items[1].captions), self.scale * SAMPLES).tolist()

    @property
    def expected(self) -> Tensor:
        """Latents of the held-out items whose captions are the prompts, (at most SAMPLES, c, h, w)."""
        return self.items[1].latents[self._prompted]

    @cached_property
    def prompts(self) -> list[str]:
        """SAMPLES prompts: captions of held-out items; of a model without its data, those it names."""
        if self.readable is not None:
            words = [self.items[1].captions[i] for i in self._prompted]
        else:
            own = self.settings.sampling.prompts if self.settings else []
            words = own or self.pipeline.defaults.get("training", {}).get("prompts") or [""]
        return [words[i % len(words)] for i in range(self.scale * SAMPLES)]

    def sample(self, steps: int, guidance_scale: float = 1.0, count: int | None = None) -> Tensor:
        """Latents (count or as many as prompts, c, h, w), float32; image i is always from the same noise."""
        options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
        with torch.random.fork_rng(devices=[]):  # a stochastic sampler may use torch's own generator
            torch.manual_seed(0)
            return self.pipeline(self.prompts[:count], seed=0, output_type="latent", **options).images.float().cpu()

    @cached_property
    def unguided(self) -> Tensor:
        """Latents by the model's own number of steps, without guidance."""
        return self.sample(self.pipeline.defaults["num_inference_steps"])
