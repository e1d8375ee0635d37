"""The noise process: how a clean sample becomes noise, what the network predicts, and at which times it learns.

One convention everywhere: x_t = alpha_t x0 + sigma_t eps, with t = 0 data and t = 1 noise; snr = alpha^2 / sigma^2 and
logsnr = ln snr fall as t grows. A schedule maps t to logsnr and back; the rest follows from it.

    schedule        law                                                            the network is told
    flow            alpha = 1 - t, sigma = t                                       1000 t
    linear ...      alpha^2 + sigma^2 = 1 through 1000 tabled steps, t = (i + 1) / 1000        i = 1000 t - 1
    karras          alpha = 1, sigma from .002 to 80                               ln(sigma) / 4

Those are also the timesteps of the matching diffusers schedulers. Torch is imported where tensors are made and not at
the top, so that `ldm.config.settings` can offer the names defined here without waiting for it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000


# ---- schedules: t <-> logsnr ----------------------------------------------------------------------------------------


class Schedule(ABC):
    """t in [0, 1] to signal and noise scales, and back. Times and results are tensors of any one shape.

    `shift` moves every time towards noise, by ln(snr) - 2 ln(shift): what a resolution `shift` times higher needs for
    the same loss of content (Hoogeboom et al. 2023, arXiv 2301.11093; Esser et al. 2024, arXiv 2403.03206, eq. 23).
    """

    first_time = 0.0  # smallest time that training and sampling use

    @abstractmethod
    def scales(self, t: "Tensor") -> "tuple[Tensor, Tensor]":
        """alpha_t and sigma_t, each in [0, 1] (sigma may be more for karras)."""

    @abstractmethod
    def time(self, logsnr: "Tensor") -> "Tensor":
        """The time at which ln(alpha^2 / sigma^2) is `logsnr`: the inverse of `logsnr`, clamped to [0, 1]."""

    @abstractmethod
    def timestep(self, t: "Tensor") -> "Tensor":
        """What the network is told, float."""

    @abstractmethod
    def from_timestep(self, timestep: "Tensor") -> "Tensor":
        """The time of which the network is told `timestep`: the inverse of `timestep`."""

    def logsnr(self, t: "Tensor") -> "Tensor":
        alpha, sigma = self.scales(t)
        return 2 * (alpha / sigma).log()

    def norm(self, t: "Tensor") -> "Tensor":
        """sqrt(alpha^2 + sigma^2): the standard deviation of x_t for data of unit variance; at t = 1, of the prior."""
        alpha, sigma = self.scales(t)
        return (alpha.square() + sigma.square()).sqrt()

    def input_scale(self, t: "Tensor") -> "Tensor":
        """What x_t is multiplied with before the network sees it; 1 except for karras."""
        return t * 0 + 1


class Flow(Schedule):
    """Rectified flow: alpha = 1 - u, sigma = u, u = s t / (1 + (s - 1) t) (Liu et al. 2022, arXiv 2209.03003)."""

    def __init__(self, shift: float = 1.0):
        self.shift = shift

    def scales(self, t):
        u = self.shift * t / (1 + (self.shift - 1) * t)
        return 1 - u, u

    def time(self, logsnr):
        u = (-logsnr / 2).sigmoid()
        return u / (self.shift - (self.shift - 1) * u)

    def timestep(self, t):
        return NUM_TRAIN_TIMESTEPS * self.scales(t)[1]

    def from_timestep(self, timestep):
        u = timestep / NUM_TRAIN_TIMESTEPS
        return u / (self.shift - (self.shift - 1) * u)


class Karras(Schedule):
    """Variance exploding: sigma = (a + t (b - a))^rho, where a and b are the rho-th roots of the range's ends.

    The network's input is x / sqrt(sigma^2 + 1), for data of unit variance; with v_prediction this is EDM's
    preconditioning but for a sign. Source: Karras et al. 2022, arXiv 2206.00364, eq. 5 and table 1.
    """

    sigma_min, sigma_max, rho = 0.002, 80.0, 7.0

    def __init__(self, shift: float = 1.0):
        self.low, self.high = ((shift * s) ** (1 / self.rho) for s in (self.sigma_min, self.sigma_max))

    def scales(self, t):
        return t * 0 + 1, (self.low + t * (self.high - self.low)) ** self.rho

    def time(self, logsnr):
        root = (-logsnr / (2 * self.rho)).exp()
        return ((root - self.low) / (self.high - self.low)).clamp(0, 1)

    def timestep(self, t):
        return self.scales(t)[1].log() / 4

    def from_timestep(self, timestep):
        return self.time(-8 * timestep)

    def input_scale(self, t):
        return 1 / self.norm(t)


class Tabled(Schedule):
    """Variance preserving: alpha = cos(phi), sigma = sin(phi), the angle phi linear between 1000 tabled steps.

    `alphas_cumprod[i]` is alpha^2 at t = (i + 1) / 1000, as in diffusers; at t = 0 the angle is 0, nothing but data.
    """

    first_time = 1 / NUM_TRAIN_TIMESTEPS

    def __init__(self, alphas_cumprod: np.ndarray):
        import torch

        self.alphas_cumprod = torch.from_numpy(alphas_cumprod)  # float64, falling
        angles = np.arctan2(np.sqrt(1 - alphas_cumprod), np.sqrt(alphas_cumprod))
        self._angles = {torch.device("cpu"): torch.from_numpy(np.concatenate([[0.0], angles]))}

    def _angles_on(self, device):
        """The angles of steps 0 to 1000, copied to a device once: each copy makes the host wait for the device."""
        if device not in self._angles:
            self._angles[device] = next(iter(self._angles.values())).to(device)
        return self._angles[device]

    def _angle(self, t):
        place = t.double().clamp(0, 1) * NUM_TRAIN_TIMESTEPS
        below = place.long().clamp(max=NUM_TRAIN_TIMESTEPS - 1)
        angles = self._angles_on(t.device)
        return angles[below].lerp(angles[below + 1], place - below)

    def scales(self, t):
        angle = self._angle(t)
        return angle.cos().to(t.dtype), angle.sin().to(t.dtype)

    def logsnr(self, t):
        return (-2 * self._angle(t).tan().log()).to(t.dtype)

    def time(self, logsnr):
        import torch

        angle, angles = (-logsnr.double() / 2).exp().atan(), self._angles_on(logsnr.device)
        below = (torch.searchsorted(angles, angle.contiguous(), right=True) - 1).clamp(0, NUM_TRAIN_TIMESTEPS - 1)
        share = (angle - angles[below]) / (angles[below + 1] - angles[below])
        return ((below + share.clamp(0, 1)) / NUM_TRAIN_TIMESTEPS).to(logsnr.dtype)

    def timestep(self, t):
        return NUM_TRAIN_TIMESTEPS * t - 1

    def from_timestep(self, timestep):
        return (timestep + 1) / NUM_TRAIN_TIMESTEPS


def _from_betas(first: float, last: float, power: float) -> np.ndarray:
    betas = np.linspace(first ** (1 / power), last ** (1 / power), NUM_TRAIN_TIMESTEPS) ** power
    return np.cumprod(1 - betas)


def _cosine() -> np.ndarray:
    alpha_bar = np.cos((np.arange(NUM_TRAIN_TIMESTEPS + 1) / NUM_TRAIN_TIMESTEPS + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999))


def _sigmoid() -> np.ndarray:
    first, last = (1 / (1 + math.exp(-end)) for end in (-3.0, 3.0))
    steps = 1 / (1 + np.exp(-np.linspace(-3.0, 3.0, NUM_TRAIN_TIMESTEPS + 1)))
    return np.maximum((last - steps) / (last - first), 1e-9)[1:]


# alpha_t^2 at the 1000 steps, float64
TABLES: dict[str, Callable[[], np.ndarray]] = {
    "linear": lambda: _from_betas(1e-4, 0.02, 1),  # Ho et al. 2020, arXiv 2006.11239, sec. 4
    "scaled_linear": lambda: _from_betas(0.00085, 0.012, 2),  # Rombach et al. 2022, arXiv 2112.10752
    "cosine": _cosine,  # Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17
    "sigmoid": _sigmoid,  # Jabri et al. 2022, arXiv 2212.11972: from -3 to 3, tau 1
}


def _tabled(name: str) -> Callable[..., Schedule]:
    def build(shift: float = 1.0, zero_terminal_snr: bool = False) -> Schedule:
        alphas_cumprod = TABLES[name]()
        alphas_cumprod = alphas_cumprod / (alphas_cumprod + shift**2 * (1 - alphas_cumprod))
        if zero_terminal_snr:  # Lin et al. 2023, arXiv 2305.08891, algorithm 1
            root = np.sqrt(alphas_cumprod)
            alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return Tabled(alphas_cumprod)

    return build


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "flow": Flow,
    **{name: _tabled(name) for name in TABLES},
    "karras": Karras,
}
