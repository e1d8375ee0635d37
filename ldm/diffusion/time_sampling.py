"""At which times the network learns."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ldm.diffusion.schedules import Schedule

if TYPE_CHECKING:
    from torch import Tensor


def _normal(u: "Tensor") -> "Tensor":
    import torch

    return torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))


# uniform numbers in [0, 1) and the schedule -> times in [0, 1]
TIMES: dict[str, Callable[["Tensor", Schedule], "Tensor"]] = {
    "uniform": lambda u, schedule: u,
    "logit_normal": lambda u, schedule: _normal(u).sigmoid(),  # Esser et al. 2024, arXiv 2403.03206, sec. 3.1, m 0, s 1
    "cosmap": lambda u, schedule: 1 - 1 / ((math.pi / 2 * u).tan() + 1),  # same section
    # ln(sigma / alpha) ~ N(-1.2, 1.2^2): Karras et al. 2022, arXiv 2206.00364, table 1
    "log_normal": lambda u, schedule: schedule.time(-2 * (1.2 * _normal(u) - 1.2)),
}
