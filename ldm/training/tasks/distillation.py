"""Distillation: a student learns to do in one step what a guided teacher does in several.

The student starts as the teacher. At the start of one of its steps it gets a noised sample; the teacher samples to the
end of that step in `substeps` guided steps, and the student's target is the one prediction that ends there in a single
step. Guidance is distilled too: a student's step is one call of the network, where each of the teacher's needs two.
With `steps: 0` only the guidance is distilled, at every time, and any sampler and number of steps may be used.

Source: Salimans and Ho 2022, arXiv 2202.00512, algorithm 2; Meng et al. 2023, arXiv 2210.03142, for guided teachers.
Unlike theirs, the guidance scale is fixed, and the student learns its few steps directly and not by halving.
"""

import copy
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from ldm.config.settings import DistillOptions, LdmSettings
from ldm.data import Splits
from ldm.diffusion.guidance import Guidance, guide
from ldm.diffusion.parameterization import convert
from ldm.diffusion.process import NoiseProcess, expand_to
from ldm.diffusion.sampling import denoise_with, sample
from ldm.diffusion.time_grids import levels
from ldm.models.digests import network_digest
from ldm.models.tokenizer import encode
from ldm.models.unet import choose_attention
from ldm.pipelines.networks import run_unet
from ldm.training.distributed import precision
from ldm.training.task import LossAndMetrics
from ldm.training.tasks.components import load_components
from ldm.training.tasks.denoising import LdmTask, Watch
from ldm.training.tasks.denoising_loss import DenoisingObjective
from ldm.training.tasks.finetuning import load_start
from ldm.utils.errors import UserError


class DistillObjective(DenoisingObjective):
    """The denoiser learns from a teacher: its target is what the teacher, guided, does in a step."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        process: NoiseProcess,
        teacher: UNet2DConditionModel,
        null_ids: Tensor,
        options: DistillOptions,
    ):
        """`null_ids` (1, L): tokens of the null caption, for the teacher's unconditional prediction."""
        super().__init__(unet, text_encoder, process)
        self.teacher, self.options = teacher.eval().requires_grad_(False), options
        self.register_buffer("null_ids", null_ids, persistent=False)

    def train(self, mode: bool = True):
        super().train(mode)
        self.teacher.eval()  # no dropout in the targets
        return self

    def losses(self, latents: Tensor, noise: Tensor, times: Tensor, input_ids: Tensor) -> LossAndMetrics:
        """As `DenoisingObjective.losses`; times are rounded up to the start of the student's step they are in."""
        process, count = self.process, self.options.steps
        ids = torch.cat([input_ids.expand(len(latents), -1), self.null_ids])
        embeds = self.text_encoder(input_ids=ids).last_hidden_state
        cond, uncond = embeds[:-1], embeds[-1:].expand(len(latents), -1, -1)
        if count:
            times = (times * count).ceil().clamp(min=1) / count
        x_t = process.corrupt(latents, noise, times)
        with torch.no_grad():
            target = self.step_target(x_t, times, cond, uncond) if count else self.guided(x_t, times, cond, uncond)
        errors = (self.predict(x_t, times, cond) - target).square().flatten(1).mean(1)
        return process.loss_weight(times) * errors, {}

    def guided(self, x_t: Tensor, times: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
        """The teacher's guided prediction (B, c, h, w); cond, uncond: text features (B, L, D)."""
        process = self.process
        return self._guide(cond, uncond)(process.network_input(x_t, times), process.timestep(times))

    def step_target(self, x_t: Tensor, times: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
        """The prediction (B, ...) with which one first-order step ends where the teacher's substeps do."""
        starts = times.tolist()  # read from the device once; the rows of each start are then known here
        target = torch.empty_like(x_t)
        for start in sorted(set(starts)):
            at = torch.tensor([row for row, one in enumerate(starts) if one == start])
            at = at.to(x_t.device, non_blocking=True)
            target[at] = self._target_from(x_t[at], start, cond[at], uncond[at])
        return target

    def _target_from(self, x_t: Tensor, start: float, cond: Tensor, uncond: Tensor) -> Tensor:
        process, end = self.process, start - 1 / self.options.steps
        fine = torch.linspace(start, end if end > 1e-6 else 0.0, self.options.substeps + 1, dtype=torch.float64)
        denoise = denoise_with(process, self._guide(cond, uncond))
        x_s = sample(denoise, x_t, process.schedule, fine, self.options.sampler)
        t, s = levels(process.schedule, fine[[0, -1]])
        keep = s.sigma / t.sigma
        x0 = (x_s - keep * x_t) / (s.alpha - keep * t.alpha)  # a step of DDIM, solved for its prediction
        alpha, sigma = (expand_to(scale, x_t) for scale in process.scales(x_t.new_full((len(x_t),), start)))
        return convert(x0, x_t, alpha, sigma, "sample", process.prediction_type)

    def _guide(self, cond: Tensor, uncond: Tensor):
        """(x_t, timestep) -> the teacher's guided prediction."""
        rule = Guidance(self.options.guidance_scale, self.options.guidance_interval)
        time = self.process.schedule.from_timestep
        return guide(self._predict_as_teacher, cond, uncond, rule, process=self.process, time=time)

    def _predict_as_teacher(self, x_t: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        return run_unet(self.teacher, x_t, timestep, prompt_embeds).float()


def distillation_task(
    settings: LdmSettings, data: Splits, run: Path, device: torch.device, watch: Watch | None = None
) -> LdmTask:
    """Train a student of `distill.teacher`, with that model's VAE, text encoder and tokenizer.

    Raises: UserError if the teacher cannot be one, or does not fit.
    """
    source = str(settings.distill.teacher)
    teacher = load_teacher(source, NoiseProcess(**settings.noise.model_dump())).to(device)
    half = precision(settings.train.mixed_precision, device) != "no"
    choose_attention(teacher, settings.model.attention, device, half)
    text = settings.text.model_copy(update={"source": source, "train": False})
    settings = settings.model_copy(update={"vae": source, "text": text})
    components = load_components(settings, data, run, device)
    student = copy.deepcopy(teacher).requires_grad_(True)
    null_ids, process = encode(components.tokenizer, [""]), components.process
    objective = DistillObjective(student, components.text_encoder, process, teacher, null_ids, settings.distill)
    fingerprints = {"teacher": network_digest(teacher)}
    # a report's loss costs as much as several of an ordinary denoiser's: fewer items
    return LdmTask(settings, components, objective, fingerprints=fingerprints, watch=watch, validation_items=64)


def load_teacher(source: str, process: NoiseProcess) -> UNet2DConditionModel:
    """The U-Net of a finished run or an exported folder, with the noise process that the student is trained with.

    Raises: UserError if it is no U-Net, or if the processes differ.
    """
    if process.learned_variance:
        raise UserError("noise.learned_variance: a student has no use for it; set it to false")
    return load_start("distill.teacher", source, process).unet
