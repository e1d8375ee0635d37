"""Time grids: the times at which a sampler stops between noise (t = 1) and data (t = 0), and the noise level there."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from ldm.diffusion.schedules import NUM_TRAIN_TIMESTEPS, Schedule, VarianceExploding

Grid = Float64[Tensor, "{num_steps}+1"]  # falling times


@dataclass(frozen=True)
class Level:
    """A point of a time grid, in plain float64 numbers."""

    t: float
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """lambda = ln(alpha / sigma), half the logsnr: -inf for pure noise, inf for data."""
        if self.alpha == 0 or self.sigma == 0:
            return -math.inf if self.alpha == 0 else math.inf
        return math.log(self.alpha / self.sigma)


def levels(schedule: Schedule, times: Tensor | Sequence[float]) -> list[Level]:
    """The levels of falling times. Raises: ValueError if they do not fall within [0, 1]."""
    times = torch.as_tensor(times, dtype=torch.float64)
    falls = times.ndim == 1 and len(times) > 1 and bool((times.diff() <= 0).all())
    if not falls or times[0] > 1 or times[-1] < 0:
        raise ValueError(f"times must be two or more, falling within 1 and 0, got {times.tolist()}")
    alphas, sigmas = schedule.scales(times)
    alphas = alphas.where(alphas > 1e-12, 0)  # cos(pi / 2) is 6e-17 in floats
    points = [Level(*each) for each in zip(times.tolist(), alphas.tolist(), sigmas.tolist(), strict=True)]
    if points[-1].t == 0:
        points[-1] = Level(0.0, 1.0, 0.0)  # the data, also for karras, whose sigma ends above 0
    if any(after.lam <= before.lam for before, after in itertools.pairwise(points)):
        raise ValueError(f"times must fall, each below the one before, got {times.tolist()}")
    return points


MAX_RATIO, MIN_RATIO = 160.0, 0.002  # sigma / alpha: EDM's 80 and 0.002, the former for its data of deviation 0.5
# sigma / alpha of ten steps of Stable Diffusion 1.5: Sabour et al. 2024, arXiv 2404.14507, and their quickstart page
ALIGN_YOUR_STEPS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152)


def uniform(schedule: Schedule, num_steps: int) -> Grid:
    """Equal steps in t. Where t = 0 is not yet data (karras), the last step is from there: EDM's grid, rho 7."""
    if isinstance(schedule, VarianceExploding):
        return torch.cat([_one_to_zero(num_steps), torch.zeros(1, dtype=torch.float64)])
    return _one_to_zero(num_steps + 1)


def quadratic(schedule: Schedule, num_steps: int) -> Grid:
    """Steps that shrink towards the data: t = (1 - k / n)^2. Source: Song et al. 2020, arXiv 2010.02502, app. D.2."""
    return uniform(schedule, num_steps) ** 2


def karras(schedule: Schedule, num_steps: int) -> Grid:
    """Equal steps in (sigma / alpha)^(1/7). Source: Karras et al. 2022, arXiv 2206.00364, eq. 5."""
    if isinstance(schedule, VarianceExploding):
        return uniform(schedule, num_steps)
    low, high = (ratio ** (1 / 7) for ratio in _ratio_range(schedule))
    return _at_ratios(schedule, (low + (high - low) * _one_to_zero(num_steps)) ** 7)


def logsnr(schedule: Schedule, num_steps: int) -> Grid:
    """Equal steps in ln(alpha / sigma)."""
    low, high = (math.log(ratio) for ratio in _ratio_range(schedule))
    return _at_ratios(schedule, (low + (high - low) * _one_to_zero(num_steps)).exp())


def align_your_steps(schedule: Schedule, num_steps: int) -> Grid:
    """The published grid of ten steps, other numbers by interpolation of its logarithm.

    It was optimized for Stable Diffusion 1.5, not for this model. Its last step goes from sigma / alpha = 0.152 to the
    data at once: invisible in images, but point clouds with finer detail than that come out too narrow.
    """
    known = np.log(ALIGN_YOUR_STEPS)
    log_ratio = np.interp(np.linspace(0, 1, num_steps), np.linspace(0, 1, len(known)), known)
    return _at_ratios(schedule, torch.from_numpy(np.exp(log_ratio)))


def trailing(schedule: Schedule, num_steps: int) -> Grid:
    """`uniform`, rounded to the steps of training. Source, and of the next two: Lin et al. 2023, arXiv 2305.08891."""
    return (_one_to_zero(num_steps + 1) * NUM_TRAIN_TIMESTEPS).round() / NUM_TRAIN_TIMESTEPS


def leading(schedule: Schedule, num_steps: int) -> Grid:
    """1, 1 + c, 1 + 2c, ... thousandths: starts where there is still signal, a known flaw. For comparison."""
    return _falling(1 + torch.arange(num_steps) * (NUM_TRAIN_TIMESTEPS // num_steps))


def linspace(schedule: Schedule, num_steps: int) -> Grid:
    """Both the first and the last step of training are in it."""
    return _falling(1 + torch.linspace(0, NUM_TRAIN_TIMESTEPS - 1, num_steps, dtype=torch.float64).round())


def _one_to_zero(count: int) -> Float64[Tensor, " {count}"]:
    return torch.linspace(1, 0, count, dtype=torch.float64)


def _falling(steps: Shaped[Tensor, " n"]) -> Float64[Tensor, " n+1"]:
    """Rising thousandths as falling times, with t = 0 at the end."""
    times = steps.double().flip(0) / NUM_TRAIN_TIMESTEPS
    return torch.cat([times, torch.zeros_like(times[:1])])


def _ratio_range(schedule: Schedule) -> tuple[float, float]:
    """sigma / alpha at the first and last time, within MIN_RATIO and MAX_RATIO."""
    low, high = levels(schedule, [1.0, max(schedule.first_time, 1e-9)])[::-1]
    return max(math.exp(-low.lam), MIN_RATIO), min(math.exp(-high.lam) if high.alpha else MAX_RATIO, MAX_RATIO)


def _at_ratios(schedule: Schedule, ratio: Float64[Tensor, " n"]) -> Float64[Tensor, " n+1"]:
    """The times of falling sigma / alpha, the first moved to t = 1, and t = 0 after the last."""
    times = schedule.time(-2 * ratio.log())
    return torch.cat([torch.ones_like(times[:1]), times[1:], torch.zeros_like(times[:1])])


# (schedule, number of steps) -> that many times and one more, falling from 1 (leading: nearly) to 0
TIME_GRIDS: dict[str, Callable[[Schedule, int], Grid]] = {
    "uniform": uniform,
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "quadratic": quadratic,
    "karras": karras,
    "logsnr": logsnr,
    "align_your_steps": align_your_steps,
}
