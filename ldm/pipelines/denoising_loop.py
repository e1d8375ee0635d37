"""The way between noise and latents, by a stock scheduler's steps: `forwards` draws, `backwards` finds the noise.

A `Walk` is what the networks are told and where the way begins. The pipeline makes one, `editing` changes it.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.parameterization import convert
from ldm.diffusion.samplers import Euler, rectified
from ldm.diffusion.sampling import standard_normal
from ldm.diffusion.time_grids import Level
from ldm.pipelines.diffusers_schedulers import process_of

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x_t as the network sees it, timestep) -> guided prediction
Callback = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Walk:
    """One row per picture, on the networks' device and in their dtype.

    Attributes:
        condition: text states of the prompts, (B, L, D), or with `weights` (B, K, L, D).
        negative: text states to lead away from, (B, L, D), or None.
        noise: (B, c, h, w) of unit variance.
        generators: what a stochastic scheduler draws from: None, one, or a list of B.
        weights: of the K prompts of each picture, see `ldm.diffusion.guidance.guide`.
        known: latents of a picture (B, c, h, w), or None.
        strength: 0 to 1: share of the steps that is taken, from `known` with as much noise as belongs there. At 1 the
            way begins at noise alone, where stock img2img leaves the trace of the picture that the first level has.
        free: bool (B, 1, h, w): what is drawn; after each step the rest becomes `known` with the noise of that level.
        resample: times that each step but the last is taken, going back by new noise in between, so that what is
            drawn gets used to what is kept (RePaint, Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1).
        take: the way itself.
    """

    condition: Tensor
    negative: Tensor | None
    noise: Tensor
    generators: Any
    weights: tuple[float, ...] | None = None
    known: Tensor | None = None
    strength: float = 1.0
    free: Tensor | None = None
    resample: int = 1
    take: "Callable[[Walk, Any, Denoise, int, Callback | None], Tensor]" = lambda *how: forwards(*how)

    def part(self, rows: slice) -> "Walk":
        """Some of the pictures."""
        names = ("condition", "negative", "noise", "known", "free")
        parts = {name: value[rows] for name in names if (value := getattr(self, name)) is not None}
        own = self.generators[rows] if isinstance(self.generators, list) else self.generators
        return replace(self, generators=own, **parts)


def forwards(walk: Walk, scheduler, denoise: Denoise, steps: int, callback: Callback | None = None) -> Tensor:
    """Latents (B, c, h, w) at the end of the way; how many steps a strength takes is as in stock img2img."""
    scheduler.set_timesteps(steps, device=walk.noise.device)
    takes = {"generator": walk.generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    timesteps, x_t, first = scheduler.timesteps, walk.noise * scheduler.init_noise_sigma, 0
    if walk.resample > 1 and getattr(scheduler, "order", 1) > 1:
        raise ValueError(f"resample goes with samplers of one call a step, got {type(scheduler).__name__}")
    levels = [_scales(scheduler, i) for i in range(len(timesteps))] if walk.resample > 1 else []
    if walk.known is not None:
        first = (steps - int(steps * walk.strength + 1e-6)) * getattr(scheduler, "order", 1)
        _begin(scheduler, first)
        x_t = _known(walk, scheduler, first) if first else x_t
    for index in range(first, len(timesteps)):
        t = timesteps[index]
        for left in reversed(range(walk.resample if index + 1 < len(timesteps) else 1)):
            before = copy.deepcopy(scheduler) if left else scheduler  # it remembers the steps that it has taken
            prediction = denoise(scheduler.scale_model_input(x_t, t), t)
            x_t = scheduler.step(prediction, t, x_t, return_dict=False, **takes)[0]
            if walk.free is not None:
                x_t = x_t.where(walk.free, _known(walk, scheduler, index + 1))
            if left:
                scheduler, x_t = before, _up(x_t, levels[index], levels[index + 1], walk.generators)
        if callback is not None:
            callback(index, t, x_t)
    return x_t


def backwards(
    walk: Walk, scheduler, denoise: Denoise, steps: int, callback: Callback | None = None, rounds: int = 1
) -> Tensor:
    """The noise (B, c, h, w) from which first-order steps of `scheduler` lead to `walk.known`: their inverse.

    A step of DDIM from x_t to x_s follows the slope at x_t, which is not known yet on the way back. The first round
    takes the slope at (x_s, t) for it: DDIM inversion (Song et al. 2020, arXiv 2010.02502, sec. 4.3; Dhariwal and
    Nichol 2021, arXiv 2105.05233, app. F). Each further round takes it at the x_t of the round before, which converges
    to the exact inverse where the step is short enough (Pan et al. 2023, arXiv 2309.04907).
    """
    assert walk.known is not None
    scheduler.set_timesteps(steps, device=walk.noise.device)
    process, x, here = process_of(scheduler), walk.known, Level(0.0, 1.0, 0.0)
    for index in reversed(range(len(scheduler.timesteps))):
        t, x_s = scheduler.timesteps[index], x
        time = process.schedule.from_timestep(t)
        there = Level(float(time), *_scales(scheduler, index))
        for _ in range(rounds):
            prediction = denoise(process.network_input(x, time), t)
            x0_hat = convert(prediction, x, there.alpha, there.sigma, process.prediction_type, "sample")
            x = Euler.advance(x_s, Euler.slope(x, x0_hat, there, rectified), here, there, rectified)
        here = there
        if callback is not None:
            callback(len(scheduler.timesteps) - 1 - index, t, x)
    return x / scheduler.init_noise_sigma


def _begin(scheduler, index: int) -> None:
    """Tell a scheduler that counts its steps which one comes first; others go by the timestep."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)


def _known(walk: Walk, scheduler, index: int) -> Tensor:
    """`walk.known` with the noise that belongs before step `index`; after the last step, itself."""
    if index >= len(scheduler.timesteps):
        return walk.known
    return scheduler.add_noise(walk.known, walk.noise, scheduler.timesteps[index : index + 1])


def _scales(scheduler, index: int) -> tuple[float, float]:
    """alpha and sigma before step `index`, as the scheduler has them."""
    _begin(scheduler, index)
    one, t = torch.ones(1, 1, dtype=torch.float64), scheduler.timesteps[index : index + 1].cpu()
    return scheduler.add_noise(one, 0 * one, t).item(), scheduler.add_noise(0 * one, one, t).item()


def _up(x_s: Tensor, t: tuple[float, float], s: tuple[float, float], generators) -> Tensor:
    """x_t from x_s by as much new noise as lies between their levels (alpha, sigma)."""
    keep = t[0] / s[0]
    return keep * x_s + max(t[1] ** 2 - (keep * s[1]) ** 2, 0) ** 0.5 * standard_normal(x_s, generators)
