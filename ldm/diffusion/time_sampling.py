"""The density of the times t at which the network is trained."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.schedules import Schedule


def _normal_quantile(u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The standard normal number of cumulative probability u."""
    return torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))


def log_normal(u: Float[Tensor, " b"], schedule: Schedule) -> Float[Tensor, " b"]:
    """ln(sigma / alpha) ~ N(-1.2, 1.2^2): Karras et al. 2022, arXiv 2206.00364, table 1."""
    return schedule.time(-2 * (1.2 * _normal_quantile(u) - 1.2))


# (u, schedule) -> t: uniform numbers in [0, 1) to times in [0, 1], shape (B,), by the inverse distribution function
TIME_DENSITIES: dict[str, Callable[[Tensor, Schedule], Tensor]] = {
    "uniform": lambda u, schedule: u,
    # mean 0, deviation 1: Esser et al. 2024, arXiv 2403.03206, sec. 3.1, as is the next
    "logit_normal": lambda u, schedule: _normal_quantile(u).sigmoid(),
    "cosmap": lambda u, schedule: 1 - 1 / ((math.pi / 2 * u).tan() + 1),
    "log_normal": log_normal,
}
