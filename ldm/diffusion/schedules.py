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
    import torch
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


# ---- what the network predicts --------------------------------------------------------------------------------------

# Each prediction is a x0 + b eps, with (a, b) from alpha and sigma. With x_t = alpha x0 + sigma eps it gives both back.
PREDICTIONS: dict[str, Callable] = {
    "epsilon": lambda alpha, sigma: (0 * alpha, 0 * alpha + 1),
    "sample": lambda alpha, sigma: (0 * alpha + 1, 0 * alpha),
    # Salimans and Ho 2022, arXiv 2202.00512, app. D; the norm makes it EDM's preconditioning where alpha = 1
    "v_prediction": lambda alpha, sigma: (-sigma / (n := (alpha**2 + sigma**2) ** 0.5), alpha / n),
    "flow": lambda alpha, sigma: (0 * alpha - 1, 0 * alpha + 1),  # the velocity dx_t/dt of flow
    "score": lambda alpha, sigma: (0 * alpha, -1 / sigma),  # grad log p_t(x_t), Song et al. 2021, arXiv 2011.13456
}


def convert(prediction: "Tensor", x_t: "Tensor", alpha, sigma, source: str, target: str) -> "Tensor":
    """A prediction of kind `source` as one of kind `target`; alpha and sigma broadcast against x_t.

    Solves x_t = alpha x0 + sigma eps and prediction = a x0 + b eps for (x0, eps). From epsilon (or score) to x0 this
    needs alpha > 0, from x0 to epsilon sigma > 0.
    """
    (a, b), (c, d) = (PREDICTIONS[kind](alpha, sigma) for kind in (source, target))
    # c x0 + d eps with x0 = (b x_t - sigma p) / det and eps = (alpha p - a x_t) / det
    return ((c * b - d * a) * x_t + (d * alpha - c * sigma) * prediction) / (alpha * b - sigma * a)


# ---- at which times the network learns ------------------------------------------------------------------------------


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


# ---- how much an error at a time counts -----------------------------------------------------------------------------

# Weights of the squared error of x0 as functions of the snr and one number, whose default is the paper's.
# 'uniform' and 'learned' weigh the error of what the network predicts, whatever that is.
WEIGHTS: dict[str, Callable[..., "Tensor"] | None] = {
    "uniform": None,
    "min_snr": lambda snr, c=5.0: snr.clamp(max=c),  # Hang et al. 2023, arXiv 2303.09556
    "soft_min_snr": lambda snr, c=5.0: c * snr / (c + snr),  # Crowson et al. 2024, arXiv 2401.11605
    "p2": lambda snr, c=1.0: snr / (1 + snr) ** c,  # Choi et al. 2022, arXiv 2204.00227: k = 1, gamma = c
    "sigmoid": lambda snr, c=2.0: snr / (1 + snr * math.exp(-c)),  # sigmoid(c - logsnr) of eps: arXiv 2303.00848
    "debiased": lambda snr, c=0.5: snr**c,  # Yu et al. 2023, arXiv 2310.08442: 1 / sqrt(snr) of eps
    "edm": lambda snr, c=1.0: snr + c,  # Karras et al. 2022, arXiv 2206.00364, table 1, sigma_data = 1
    "learned": None,  # exp(-u(t)) with + u(t) in the loss: Karras et al. 2024, arXiv 2312.02696
}


# ---- all together ---------------------------------------------------------------------------------------------------


def rows(values: "Tensor", like: "Tensor") -> "Tensor":
    """(B,) or () shaped to broadcast against (B, ...), in the other's dtype."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


class NoiseProcess:
    """x0, eps, time -> x_t, network timestep, target and loss weight.

    Args:
        process: a name in `SCHEDULES`.
        prediction_type: a name in `PREDICTIONS`.
        timesteps: a name in `TIMES`.
        stratified: one time from each of B equal parts, which lowers the loss's variance.
        shift: resolution shift of the schedule, see `Schedule`.
        zero_terminal_snr: rescale a tabled schedule so that x_1 is nothing but noise.
        weight, weight_parameter: a name in `WEIGHTS`, and its number (None = the paper's).
        learned_variance, vlb_weight: the network also predicts the reverse variance, see `variational_loss`.
    """

    def __init__(
        self,
        process: str = "flow",
        prediction_type: str = "flow",
        timesteps: str = "logit_normal",
        stratified: bool = True,
        shift: float = 1.0,
        zero_terminal_snr: bool = False,
        weight: str = "uniform",
        weight_parameter: float | None = None,
        learned_variance: bool = False,
        vlb_weight: float = 0.001,
    ):
        options = {"zero_terminal_snr": True} if zero_terminal_snr else {}
        self.schedule = SCHEDULES[process](shift, **options)
        self.prediction_type, self.timesteps, self.stratified = prediction_type, timesteps, stratified
        self.weight, self.weight_parameter = weight, weight_parameter
        self.learned_variance, self.vlb_weight = learned_variance, vlb_weight

    def draw_times(self, batch_size: int, generator: "torch.Generator | None" = None) -> "Tensor":
        """Times t in [first_time, 1], shape (B,), float32."""
        import torch

        u = torch.rand(batch_size, generator=generator)
        if self.stratified:
            u = (torch.randperm(batch_size, generator=generator) + u) / batch_size
        times = TIMES[self.timesteps](u, self.schedule).clamp(min=self.schedule.first_time)
        return previous_step(times)[0] if self.learned_variance else times  # the bound is a sum over whole steps

    def timestep(self, t: "Tensor") -> "Tensor":
        """What the network is told, float, shape of t."""
        return self.schedule.timestep(t)

    def scales(self, t: "Tensor") -> "tuple[Tensor, Tensor]":
        """alpha_t and sigma_t, each of t's shape."""
        return self.schedule.scales(t)

    def network_input(self, x_t: "Tensor", t: "Tensor") -> "Tensor":
        return rows(self.schedule.input_scale(t), x_t) * x_t

    def corrupt(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """x_t = alpha_t x0 + sigma_t eps; shapes (B, ...) and t (B,)."""
        alpha, sigma = self.scales(t)
        return rows(alpha, x0) * x0 + rows(sigma, x0) * eps

    def target(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """What the network should predict, shape of x0."""
        a, b = PREDICTIONS[self.prediction_type](*(rows(scale, x0) for scale in self.scales(t)))
        return a * x0 + b * eps

    def convert(self, prediction: "Tensor", x_t: "Tensor", t: "Tensor", target: str) -> "Tensor":
        """The network's prediction as 'sample', 'epsilon' or any other kind, see `convert`."""
        alpha, sigma = (rows(scale, x_t) for scale in self.scales(t))
        return convert(prediction, x_t, alpha, sigma, self.prediction_type, target)

    def predict_x0(self, x_t: "Tensor", prediction: "Tensor", t: "Tensor") -> "Tensor":
        """The clean sample that a prediction implies, shape of x_t."""
        return self.convert(prediction, x_t, t, "sample")

    def loss_weight(self, t: "Tensor") -> "Tensor":
        """Weight of each sample's squared error in what the network predicts, shape (B,).

        With p = a x0 + b eps and x_t given, dp/dx0 = a - b alpha / sigma; its square turns a weight on the error of x0
        into one on the error of p.
        """
        weigh = WEIGHTS[self.weight]
        if weigh is None:
            return t * 0 + 1
        alpha, sigma = (scale.double().clamp(min=1e-6) for scale in self.scales(t))
        a, b = PREDICTIONS[self.prediction_type](alpha, sigma)
        options = {} if self.weight_parameter is None else {"c": self.weight_parameter}
        return (weigh((alpha / sigma) ** 2, **options) / (a - b * alpha / sigma) ** 2).to(t.dtype)


# ---- one step back: exact posterior, and the variational bound ------------------------------------------------------


def posterior(schedule: Schedule, t: "Tensor", s: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
    """q(x_s | x_t, x0) for s < t: the coefficients of x_t and x0 in its mean, and its variance.

    Source: Kingma et al. 2021, arXiv 2107.00630, app. A; Ho et al. 2020, arXiv 2006.11239, eq. 6-7, for adjacent steps.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.scales(t), schedule.scales(s)
    alpha_ts = alpha_t / alpha_s
    variance_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
    return alpha_ts * sigma_s**2 / sigma_t**2, alpha_s * variance_ts / sigma_t**2, variance_ts * sigma_s**2 / sigma_t**2


def log_variance_range(schedule: Schedule, t: "Tensor", s: "Tensor") -> "tuple[Tensor, Tensor]":
    """Logarithms of the smallest and largest sensible reverse variance from t to s: beta-tilde, and beta.

    Where s = 0 and beta-tilde is 0, the former is that of the step after, as in Nichol and Dhariwal 2021, sec. 3.1.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.scales(t), schedule.scales(s)
    beta = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    following = t + (t - s)
    variance = posterior(schedule, t, s)[2]
    variance = variance.where(s > 0, posterior(schedule, following, t)[2])
    return variance.clamp(min=1e-20).log(), beta.clamp(min=1e-20).log()


def gaussian_kl(mean_1, log_variance_1, mean_2, log_variance_2):
    """KL(N(mean_1, exp(log_variance_1)) || N(mean_2, exp(log_variance_2))) in nats, elementwise."""
    ratio = (log_variance_1 - log_variance_2).exp()
    distance = (mean_1 - mean_2) ** 2 * (-log_variance_2).exp()
    return 0.5 * (ratio + distance - 1 - (log_variance_1 - log_variance_2))


def step_bound(
    schedule: Schedule, x0: "Tensor", x_t: "Tensor", x0_hat: "Tensor", log_variance: "Tensor", t: "Tensor", s: "Tensor"
) -> "Tensor":
    """One term of the variational bound in nats per dimension, shape (B,).

    KL(q(x_s | x_t, x0) || p(x_s | x_t)) for s > 0, and -ln p(x0 | x_t) for s = 0, where p has the posterior's mean with
    x0_hat in place of x0 and the given log-variance (broadcastable to x0). Source: Ho et al. 2020, eq. 5.
    """
    from_x_t, from_x0, variance = (rows(value, x0) for value in posterior(schedule, t, s))
    mean, mean_hat = from_x_t * x_t + from_x0 * x0, from_x_t * x_t + from_x0 * x0_hat
    kl = gaussian_kl(mean, variance.clamp(min=1e-20).log(), mean_hat, log_variance)
    likelihood = 0.5 * (math.log(2 * math.pi) + log_variance + (x0 - mean_hat) ** 2 * (-log_variance).exp())
    return kl.where(rows(s, x0) > 0, likelihood).flatten(1).mean(1)


def variational_loss(
    process: NoiseProcess, x0: "Tensor", x_t: "Tensor", prediction: "Tensor", share: "Tensor", t: "Tensor"
) -> "Tensor":
    """The bound's term at each t, as the loss that teaches the reverse variance and nothing else, shape (B,).

    The network gives `share`, of x0's shape: ln variance = (share + 1) / 2 between the ends of `log_variance_range`.
    The mean is held fixed. Source: Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15 and 16.
    """
    _, s = previous_step(t)
    low, high = (rows(end, x0) for end in log_variance_range(process.schedule, t, s))
    log_variance = low + (share + 1) / 2 * (high - low)
    x0_hat = process.predict_x0(x_t, prediction, t).detach()
    return step_bound(process.schedule, x0, x_t, x0_hat, log_variance, t, s)


def previous_step(t: "Tensor", num_steps: int = NUM_TRAIN_TIMESTEPS) -> "tuple[Tensor, Tensor]":
    """t rounded up to a multiple of 1 / num_steps, and the multiple before it."""
    index = (t * num_steps - 1e-3).ceil().clamp(min=1)
    return index / num_steps, (index - 1) / num_steps
