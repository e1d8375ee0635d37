"""Noise schedules: the signal and noise scales alpha_t and sigma_t of x_t = alpha_t x_0 + sigma_t eps.

One convention everywhere: t = 0 is data and t = 1 is noise; snr = alpha^2 / sigma^2 and logsnr = ln snr fall as t
grows. A schedule maps t to alpha and sigma, and logsnr back to t; the rest follows.

    schedule      scales                                                              timestep of the network
    flow          alpha = 1 - t, sigma = t                                            1000 t
    linear ...    alpha^2 + sigma^2 = 1, tabulated at t = (i + 1) / 1000              i = 1000 t - 1
    karras        alpha = 1, sigma from 0.002 to 80                                   ln(sigma) / 4

The timesteps are those of the matching diffusers schedulers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000
WITHOUT_DOUBLE = ("mps",)  # types of devices

Times = Float[Tensor, "*t"]  # any shape; the results of a schedule have the same one
Timesteps = Real[Tensor, "*t"]  # as the network takes them; those of diffusers are whole numbers


class Schedule(ABC):
    """t in [0, 1] to alpha_t and sigma_t, and logsnr back to t. Arguments and results are tensors of one shape.

    `shift` moves every t towards noise: logsnr falls by 2 ln(shift), what a resolution `shift` times higher needs to
    lose the same content (Hoogeboom et al. 2023, arXiv 2301.11093; Esser et al. 2024, arXiv 2403.03206, eq. 23).
    """

    first_time = 0.0  # smallest t that training and sampling use

    @abstractmethod
    def scales(self, t: Times) -> tuple[Times, Times]:
        """alpha_t and sigma_t, each in [0, 1], except that karras has sigma up to 80."""

    @abstractmethod
    def time(self, logsnr: Times) -> Times:
        """The t at which ln(alpha^2 / sigma^2) is `logsnr`, clamped to [0, 1]: the inverse of `logsnr`."""

    @abstractmethod
    def timestep(self, t: Times) -> Times:
        """The network's time input, in 0 to 1000 or as karras scales it."""

    @abstractmethod
    def from_timestep(self, timestep: Timesteps) -> Times:
        """The inverse of `timestep`."""

    def logsnr(self, t: Times) -> Times:
        """ln(alpha_t^2 / sigma_t^2); infinite where one of them is 0."""
        alpha, sigma = self.scales(t)
        return 2 * (alpha / sigma).log()

    def norm(self, t: Times) -> Times:
        """sqrt(alpha_t^2 + sigma_t^2): deviation of x_t for x_0 of unit variance; at t = 1, of the prior."""
        alpha, sigma = self.scales(t)
        return (alpha.square() + sigma.square()).sqrt()

    def input_scale(self, t: Times) -> Times:
        """What x_t is multiplied by before the network sees it: 1 except for karras."""
        return torch.ones_like(t)


def in_double(values: Tensor) -> Tensor:
    """In float64, on a device that has it: an Apple GPU has not, so from there on the CPU."""
    return (values.cpu() if values.device.type in WITHOUT_DOUBLE else values).double()


class RectifiedFlow(Schedule):
    """alpha = 1 - u and sigma = u with u = s t / (1 + (s - 1) t), s the shift (Liu et al. 2022, arXiv 2209.03003)."""

    def __init__(self, shift: float = 1.0):
        self.shift = shift

    def scales(self, t: Times) -> tuple[Times, Times]:
        u = self.shift * t / (1 + (self.shift - 1) * t)
        return 1 - u, u

    def time(self, logsnr: Times) -> Times:
        return self._unshifted((-logsnr / 2).sigmoid())

    def timestep(self, t: Times) -> Times:
        return NUM_TRAIN_TIMESTEPS * self.scales(t)[1]

    def from_timestep(self, timestep: Timesteps) -> Times:
        return self._unshifted(timestep / NUM_TRAIN_TIMESTEPS)

    def _unshifted(self, u: Times) -> Times:
        return u / (self.shift - (self.shift - 1) * u)


class VarianceExploding(Schedule):
    """alpha = 1 and sigma = (a + t (b - a))^rho with a = sigma_min^(1/rho), b = sigma_max^(1/rho).

    The network's input is x_t / sqrt(sigma^2 + 1), for data of unit variance; with v_prediction this is EDM's
    preconditioning up to a sign. Source: Karras et al. 2022, arXiv 2206.00364, eq. 5 and table 1.
    """

    sigma_min, sigma_max, rho = 0.002, 80.0, 7.0

    def __init__(self, shift: float = 1.0):
        self.a, self.b = ((shift * sigma) ** (1 / self.rho) for sigma in (self.sigma_min, self.sigma_max))

    def scales(self, t: Times) -> tuple[Times, Times]:
        return torch.ones_like(t), (self.a + t * (self.b - self.a)) ** self.rho

    def time(self, logsnr: Times) -> Times:
        root = (-logsnr / (2 * self.rho)).exp()
        return ((root - self.a) / (self.b - self.a)).clamp(0, 1)

    def timestep(self, t: Times) -> Times:
        return self.scales(t)[1].log() / 4

    def from_timestep(self, timestep: Timesteps) -> Times:
        return self.time(-8 * timestep)

    def input_scale(self, t: Times) -> Times:
        return 1 / self.norm(t)


class DiscreteVP(Schedule):
    """Variance preserving: alpha = cos(phi), sigma = sin(phi), phi linear in t between 1000 tabulated steps.

    Args:
        alphas_cumprod: float64 (1000,), falling: alpha^2 at t = (i + 1) / 1000, as in diffusers. At t = 0, phi = 0.
    """

    first_time = 1 / NUM_TRAIN_TIMESTEPS

    def __init__(self, alphas_cumprod: np.ndarray):
        self.alphas_cumprod = torch.from_numpy(alphas_cumprod)
        phi = np.arctan2(np.sqrt(1 - alphas_cumprod), np.sqrt(alphas_cumprod))
        self._angles = {torch.device("cpu"): torch.from_numpy(np.concatenate([[0.0], phi]))}

    def _angles_on(self, device: torch.device) -> Float[Tensor, " steps"]:
        """phi of steps 0 to 1000, copied to a device once: each copy makes the host wait for the device."""
        if device not in self._angles:
            self._angles[device] = next(iter(self._angles.values())).to(device)
        return self._angles[device]

    def _phi(self, t: Times) -> Times:
        position = in_double(t).clamp(0, 1) * NUM_TRAIN_TIMESTEPS
        below = position.long().clamp(max=NUM_TRAIN_TIMESTEPS - 1)
        angles = self._angles_on(position.device)
        return angles[below].lerp(angles[below + 1], position - below)

    def scales(self, t: Times) -> tuple[Times, Times]:
        phi = self._phi(t)
        return phi.cos().to(t), phi.sin().to(t)

    def logsnr(self, t: Times) -> Times:
        return (-2 * self._phi(t).tan().log()).to(t)

    def time(self, logsnr: Times) -> Times:
        phi = (-in_double(logsnr) / 2).exp().atan()
        angles = self._angles_on(phi.device)
        below = (torch.searchsorted(angles, phi.contiguous(), right=True) - 1).clamp(0, NUM_TRAIN_TIMESTEPS - 1)
        fraction = (phi - angles[below]) / (angles[below + 1] - angles[below])
        return ((below + fraction.clamp(0, 1)) / NUM_TRAIN_TIMESTEPS).to(logsnr)

    def timestep(self, t: Times) -> Times:
        return NUM_TRAIN_TIMESTEPS * t - 1

    def from_timestep(self, timestep: Timesteps) -> Times:
        return (timestep + 1) / NUM_TRAIN_TIMESTEPS


def _from_betas(first: float, last: float, power: float) -> np.ndarray:
    """prod (1 - beta_i) of betas whose `power`-th roots are evenly spaced."""
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


def _tabulated(name: str) -> Callable[..., Schedule]:
    def build(shift: float = 1.0, zero_terminal_snr: bool = False) -> Schedule:
        alphas_cumprod = TABLES[name]()
        alphas_cumprod = alphas_cumprod / (alphas_cumprod + shift**2 * (1 - alphas_cumprod))
        if zero_terminal_snr:  # Lin et al. 2023, arXiv 2305.08891, algorithm 1
            root = np.sqrt(alphas_cumprod)
            alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return DiscreteVP(alphas_cumprod)

    return build


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "flow": RectifiedFlow,
    **{name: _tabulated(name) for name in TABLES},
    "karras": VarianceExploding,
}
