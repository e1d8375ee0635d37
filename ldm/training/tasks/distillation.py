"""Few-step students: a denoiser that learns to go in one step where a guided teacher takes several.

The student starts as the teacher. At the start of one of its steps it sees a noised sample, the teacher walks to the
end of that step in `substeps` of its own, guided, and the student learns the one prediction that leads there at once.
So guidance is folded in: each of the student's steps is one call of the network, where the teacher needs two for each
of its own. With `steps: 0` nothing but the guidance is folded in, at every time, and any solver and number of steps
may follow.

Source: Salimans and Ho 2022, arXiv 2202.00512, algorithm 2; Meng et al. 2023, arXiv 2210.03142, for guided teachers.
Other than theirs, the guidance scale is fixed, and the student learns its few steps directly and not by halving.
"""

import copy

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from ldm.config.settings import DistillOptions, LdmSettings
from ldm.diffusion.guidance import Guidance, guide
from ldm.diffusion.parameterization import convert
from ldm.diffusion.process import NoiseProcess, expand_to
from ldm.diffusion.sampling import denoise_with, sample
from ldm.diffusion.time_grids import levels
from ldm.models.digests import network_digest
from ldm.models.unet import choose_attention
from ldm.training.distributed import precision
from ldm.training.tasks.denoising import LdmTask
from ldm.training.tasks.denoising_loss import LdmObjective
from ldm.training.tasks.finetuning import load_start
from ldm.utils.errors import UserError


class DistillObjective(LdmObjective):
    """As `LdmObjective`, with the teacher's guided step for a target in place of the data's."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        process: NoiseProcess,
        teacher: UNet2DConditionModel,
        null_ids: Tensor,
        options: DistillOptions,
    ):
        """`null_ids` (1, L): tokens of the null caption, which the teacher is led away from."""
        super().__init__(unet, text_encoder, process)
        self.teacher, self.options = teacher.eval().requires_grad_(False), options
        self.register_buffer("null_ids", null_ids, persistent=False)

    def train(self, mode: bool = True):
        super().train(mode)
        self.teacher.eval()  # no dropout in what is to be learned
        return self

    def losses(
        self, latents: Tensor, noise: Tensor, times: Tensor, input_ids: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The squared error of each item, (B,); times (B,) move up to the start of the step that they lie in."""
        process, count = self.process, self.options.steps
        ids = torch.cat([input_ids.expand(len(latents), -1), self.null_ids])
        *told, null = self.text_encoder(input_ids=ids).last_hidden_state.split(1)
        states, null = torch.cat(told), null.expand(len(latents), -1, -1)
        if count:
            times = (times * count).ceil().clamp(min=1) / count
        x_t = process.corrupt(latents, noise, times)
        with torch.no_grad():
            target = self.step_target(x_t, times, states, null) if count else self.guided(x_t, times, states, null)
        prediction = self.unet(process.network_input(x_t, times), process.timestep(times), states).sample.float()
        return process.loss_weight(times) * (prediction - target).square().flatten(1).mean(1), {}

    def guided(self, x_t: Tensor, times: Tensor, states: Tensor, null: Tensor) -> Tensor:
        """The teacher's prediction, led from the null caption to the states (B, L, D)."""
        process = self.process
        return self._guide(states, null)(process.network_input(x_t, times), process.timestep(times))

    def step_target(self, x_t: Tensor, times: Tensor, states: Tensor, null: Tensor) -> Tensor:
        """The prediction (B, ...) with which one first-order step ends where the teacher's substeps do."""
        target = torch.empty_like(x_t)
        for start in times.unique().tolist():
            at = times == start
            target[at] = self._of_one_step(x_t[at], start, states[at], null[at])
        return target

    def _of_one_step(self, x_t: Tensor, start: float, states: Tensor, null: Tensor) -> Tensor:
        process, end = self.process, start - 1 / self.options.steps
        fine = torch.linspace(start, end if end > 1e-6 else 0.0, self.options.substeps + 1, dtype=torch.float64)
        denoise = denoise_with(process, self._guide(states, null))
        x_s = sample(denoise, x_t, process.schedule, fine, self.options.sampler)
        t, s = levels(process.schedule, fine[[0, -1]])
        keep = s.sigma / t.sigma
        x0 = (x_s - keep * x_t) / (
            s.alpha - keep * t.alpha
        )  # `ldm.diffusion.samplers.ddim_step`, solved for what it is told
        alpha, sigma = (expand_to(scale, x_t) for scale in process.scales(x_t.new_full((len(x_t),), start)))
        return convert(x0, x_t, alpha, sigma, "sample", process.prediction_type)

    def _guide(self, states: Tensor, null: Tensor):
        """(x_t, timestep) -> the teacher's prediction by its rule of guidance."""
        rule = Guidance(self.options.guidance_scale, self.options.guidance_interval)
        time = self.process.schedule.from_timestep
        return guide(self._teach, states, null, rule, process=self.process, time=time)

    def _teach(self, x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        return self.teacher(x_t, timestep, states).sample.float()


class DistillTask(LdmTask):
    """Teaches a student: see `ldm.training.task.Task`. VAE, text encoder and tokenizer are the teacher's."""

    validation_items = 64  # each costs as much as several of a denoiser's own

    def _begin(self, settings: LdmSettings, device: torch.device) -> LdmSettings:
        source = str(settings.distill.teacher)
        self.teacher = load_teacher(source, NoiseProcess(**settings.noise.model_dump())).to(device)
        half = precision(settings.train.mixed_precision, device) != "no"
        choose_attention(self.teacher, settings.model.attention, device, half)
        text = settings.text.model_copy(update={"source": source, "train": False})
        return settings.model_copy(update={"vae": source, "text": text})

    def _identity(self) -> dict[str, str]:
        return super()._identity() | {"teacher": network_digest(self.teacher)}

    def _build(self) -> UNet2DConditionModel:
        return copy.deepcopy(self.teacher).requires_grad_(True)

    def _objective(self) -> LdmObjective:
        options, null_ids = self.settings.distill, self._tokens([""])
        return DistillObjective(self.unet, self.text_encoder, self.process, self.teacher, null_ids, options)


def load_teacher(source: str, process: NoiseProcess) -> UNet2DConditionModel:
    """The U-Net of a finished run or an exported folder, of the noise process that the student is trained with.

    Raises: UserError if it is no U-Net, or if the processes differ.
    """
    if process.learned_variance:
        raise UserError("noise.learned_variance: a student has no use for it; set it to false")
    return load_start("distill.teacher", source, process).unet
