"""Between noise and latents by the steps of a diffusers scheduler: `denoise` generates, `invert` finds the noise.

Both run `ldm.diffusion.sampling.denoising_loop`, as our own samplers do. The same loop without torch is in
`ldm.pipelines.torch_free`, and in JavaScript in `ldm/apps/web/page/sampler.js`; tests hold them equal.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.diffusion.guidance import Guidance
from ldm.diffusion.parameterization import convert
from ldm.diffusion.samplers import Euler, rectified
from ldm.diffusion.sampling import State, denoising_loop, standard_normal
from ldm.diffusion.time_grids import Level
from ldm.pipelines.diffusers_schedulers import process_of, set_steps

log = logging.getLogger(__name__)
Predict = Callable[[Tensor, Tensor], Tensor]  # (x_t as the network sees it, timestep) -> guided prediction
LoopStep = Callable[[State], tuple[Tensor, Tensor | None]]
Callback = Callable[[int, Tensor, Tensor], None]
PER_IMAGE = ("prompt_embeds", "negative_prompt_embeds", "noise", "init_latents", "inpaint_mask")


@dataclass(frozen=True)
class SamplingPlan:
    """All that decides the images of one call. Tensors have a row for each image, on the networks' device.

    Attributes:
        prompt_embeds: (B, L, D), or with `weights` (B, K, L, D).
        negative_prompt_embeds: (B, L, D), or None.
        noise: (B, c, h, w) of unit variance.
        generators: of the noise that a stochastic scheduler adds: None, one, or a list of B.
        num_prompts: B is a multiple of it, and the images of a prompt lie side by side.
        scheduler, num_inference_steps: whose steps are taken, and how many.
        guidance: the rule; weak: the network of autoguidance, see `ldm.diffusion.guidance.guide`.
        weights: of the K prompts of each image.
        init_latents: latents of an image to begin with (B, c, h, w), or None.
        strength: 0 to 1: fraction of the steps that is taken, from `init_latents` with as much noise as belongs there.
            At 1 the loop begins at noise alone, where diffusers' img2img leaves the trace of the image that the first
            level has.
        inpaint_mask: bool (B, 1, h, w): what is generated; after each step the rest becomes `init_latents` with the
            noise of that level.
        resample: times that each step but the last is taken, going back by new noise in between, so that what is
            generated fits what is kept (RePaint, Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1).
        inverse: from `init_latents` to noise; rounds: see `invert`.
        timesteps, sigmas: the steps' own, in place of the scheduler's and of `num_inference_steps`, see `set_steps`.
        eta: see `Pipeline.__call__`; lora_scale: factor of the scale of `load_lora_weights`.
        callback, callback_on_step_end, tensor_inputs, batch_size, output_type: as of `Pipeline.__call__`.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    noise: Tensor
    scheduler: Any
    num_inference_steps: int
    generators: Any = None
    num_prompts: int = 1
    guidance: Guidance = Guidance()
    weak: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    weights: tuple[float, ...] | None = None
    init_latents: Tensor | None = None
    strength: float = 1.0
    inpaint_mask: Tensor | None = None
    resample: int = 1
    inverse: bool = False
    rounds: int = 1
    timesteps: Sequence[int] | None = None
    sigmas: Sequence[float] | None = None
    eta: float = 0.0
    lora_scale: float = 1.0
    callback: Callback | None = None
    callback_on_step_end: Callable[..., dict[str, Any]] | None = None
    tensor_inputs: tuple[str, ...] = ("latents",)
    batch_size: int = 64
    output_type: str = "pil"

    def rows(self, part: slice) -> "SamplingPlan":
        """Some of the images."""
        parts = {name: value[part] for name in PER_IMAGE if (value := getattr(self, name)) is not None}
        own = self.generators[part] if isinstance(self.generators, list) else self.generators
        return replace(self, generators=own, **parts)

    def batches(self) -> Iterator["SamplingPlan"]:
        for start in range(0, len(self.noise), self.batch_size):
            yield self.rows(slice(start, start + self.batch_size))

    def expand(self, rows: Tensor) -> Tensor:
        """One row for each image, from one for all, for each prompt or for each image. Raises: ValueError."""
        total = len(self.noise)
        if len(rows) not in (1, self.num_prompts, total):
            raise ValueError(f"images must be one, or one for each prompt, got {len(rows)} for {self.num_prompts}")
        return rows.repeat_interleave(total // len(rows), dim=0)


class Watch(Protocol):
    """Who looks on: told how many steps there are, it may replace the latents after each, and stop."""

    @property
    def interrupted(self) -> bool: ...

    def begin(self, num_steps: int) -> None: ...

    def after_step(self, index: int, timestep: Tensor, latents: Tensor) -> Tensor: ...


def denoise(plan: SamplingPlan, predict: Predict, watch: Watch | None = None) -> Tensor:
    """Latents (B, c, h, w) at the end of the loop; how many steps a strength takes is as in diffusers' img2img."""
    scheduler, x, first = plan.scheduler, plan.noise, 0
    # On the CPU: no step has to wait for a GPU to tell its time.
    count = set_steps(scheduler, plan.num_inference_steps, plan.timesteps, plan.sigmas)
    if "Ancestral" in type(scheduler).__name__:  # in float32 the noise of a step from a large sigma rounds to NaN
        scheduler.sigmas = scheduler.sigmas.double()
    step, order = scheduler_step(plan, predict), getattr(scheduler, "order", 1)
    if plan.init_latents is not None:
        first = (count - int(count * plan.strength + 1e-6)) * order
    _begin(scheduler, first)
    x = _noised(plan, scheduler, first) if first else x * scheduler.init_noise_sigma
    x = _take(plan, step, x, [*scheduler.timesteps, None], first, watch)
    if not x.isfinite().all():
        log.warning(
            "%s gave latents that are not finite numbers, so images are blank: try another sampler, more than %d steps "
            "or float32",
            *(type(scheduler).__name__, plan.num_inference_steps),
        )
    return x


def scheduler_step(plan: SamplingPlan, predict: Predict) -> LoopStep:
    """A step of the plan's scheduler for `denoising_loop`, with what inpainting keeps put back.

    Each but the last is taken `plan.resample` times, with new noise in between. Raises: ValueError where it cannot be.
    """
    scheduler = plan.scheduler
    if plan.resample > 1 and getattr(scheduler, "order", 1) > 1:
        raise ValueError(f"resample goes with samplers of one call a step, got {type(scheduler).__name__}")
    levels = [_scales(scheduler, i) for i in range(len(scheduler.timesteps))] if plan.resample > 1 else []
    known = inspect.signature(scheduler.step).parameters
    takes = {name: value for name, value in (("generator", plan.generators), ("eta", plan.eta)) if name in known}

    def once(x_t: Tensor, index: int) -> Tensor:
        t = scheduler.timesteps[index]
        x_s = scheduler.step(predict(scheduler.scale_model_input(x_t, t), t), t, x_t, return_dict=False, **takes)[0]
        return x_s if plan.inpaint_mask is None else x_s.where(plan.inpaint_mask, _noised(plan, scheduler, index + 1))

    def step(state: State) -> tuple[Tensor, None]:
        nonlocal scheduler
        x = state.x
        for _ in range(plan.resample - 1 if state.s is not None else 0):
            before = copy.deepcopy(scheduler)  # it remembers the steps that it has taken
            x = _renoise(once(x, state.index), levels[state.index], levels[state.index + 1], plan.generators)
            scheduler = before
        return once(x, state.index), None

    return step


def _take(
    plan: SamplingPlan, step: LoopStep, x: Tensor, points: list[Any], first: int = 0, watch: Watch | None = None
) -> Tensor:
    """x after the steps between points from the `first`, of which one end is None, unless the watch stops them."""

    def watched(state: State) -> tuple[Tensor, Tensor | None]:
        x, x0_hat = step(state)
        timestep = state.s if points[0] is None else state.t
        if watch is not None:
            x = watch.after_step(state.index - first, timestep, x)
        if plan.callback is not None:
            plan.callback(state.index, timestep, x)
        return x, x0_hat

    if watch is not None:
        watch.begin(len(points) - 1 - first)
    for state in denoising_loop(watched, x, points, first):
        x = state.x
        if watch is not None and watch.interrupted:
            break
    return x


def invert(plan: SamplingPlan, predict: Predict, watch: Watch | None = None) -> Tensor:
    """The noise (B, c, h, w) from which first-order steps of the scheduler lead to `plan.init_latents`: their inverse.

    A step of DDIM from x_t to x_s follows the slope at x_t, which is not known yet on the way back. The first round
    takes the slope at (x_s, t) for it: DDIM inversion (Song et al. 2020, arXiv 2010.02502, sec. 4.3; Dhariwal and
    Nichol 2021, arXiv 2105.05233, app. F). Each further round takes it at the x_t of the round before, which converges
    to the exact inverse where the step is short enough (Pan et al. 2023, arXiv 2309.04907).
    """
    assert plan.init_latents is not None
    scheduler, x = plan.scheduler, plan.init_latents
    set_steps(scheduler, plan.num_inference_steps, plan.timesteps, plan.sigmas)
    timesteps, process, here = list(scheduler.timesteps), process_of(scheduler), Level(0.0, 1.0, 0.0)

    def inverse_step(state: State) -> tuple[Tensor, None]:
        nonlocal here
        x, t = state.x, process.schedule.from_timestep(state.s)
        there = Level(float(t), *_scales(scheduler, len(timesteps) - 1 - state.index))
        for _ in range(plan.rounds):
            prediction = predict(process.network_input(x, t), state.s)
            x0_hat = convert(prediction, x, there.alpha, there.sigma, process.prediction_type, "sample")
            x = Euler.advance(state.x, Euler.slope(x, x0_hat, there, rectified), here, there, rectified)
        here = there
        return x, None

    x = _take(plan, inverse_step, x, [None, *reversed(timesteps)], watch=watch)
    return x / scheduler.init_noise_sigma


def _begin(scheduler: Any, index: int) -> None:
    """Say which step comes first; where two timesteps are equal, schedulers would look up the wrong one."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)


def _noised(plan: SamplingPlan, scheduler: Any, index: int) -> Tensor:
    """`plan.init_latents` with the noise that belongs before step `index`; after the last step, themselves."""
    if index >= len(scheduler.timesteps):
        return plan.init_latents
    return scheduler.add_noise(plan.init_latents, plan.noise, scheduler.timesteps[index : index + 1])


def _scales(scheduler: Any, index: int) -> tuple[float, float]:
    """alpha and sigma before step `index`, as the scheduler has them."""
    _begin(scheduler, index)
    one, t = torch.ones(1, 1, dtype=torch.float64), scheduler.timesteps[index : index + 1].cpu()
    return scheduler.add_noise(one, 0 * one, t).item(), scheduler.add_noise(0 * one, one, t).item()


def _renoise(x_s: Tensor, t: tuple[float, float], s: tuple[float, float], generators: Any) -> Tensor:
    """x_t from x_s by as much new noise as lies between their levels (alpha, sigma)."""
    keep = t[0] / s[0]
    return keep * x_s + max(t[1] ** 2 - (keep * s[1]) ** 2, 0) ** 0.5 * standard_normal(x_s, generators)
