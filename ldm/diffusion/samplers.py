"""Samplers: from noise back to data, one class with one `step` each.

Everything is written in alpha, sigma and lambda = ln(alpha / sigma), so each sampler works with every schedule. While
a denoiser's guess x0_hat of x_0 stays the same, x moves on the line between x0_hat and eps, and that move is exact:

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x0_hat                       (`ddim_step`)

It is DDIM, Euler's method, and the first order of DPM-Solver++ and UniPC. Samplers differ in how they extrapolate
x0_hat over the step, and in whether they replace some of the old noise by new. A grid ends at t = 0, the data:
sigma_s = 0 and x_s = x0_hat. It may start in pure noise: alpha_t = 0 and lambda = -inf are fine everywhere.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.time_grids import Level

Batch = Float[Tensor, "b *rest"]


@dataclass(frozen=True)
class Step:
    """A step from level t to level s, and what a sampler may use for it.

    Attributes:
        index, num_steps: this is step `index` of `num_steps`, the first is 0.
        past: earlier (level, x0_hat), newest last; pure noise left out, whose lambda is not finite.
        denoise: (x, level) -> x0_hat there: one more call of the network.
        noise: () -> standard normal noise of x's shape.
        variance_fraction: what the network predicts of the variance, see `sampling.denoise_with`; or None.
    """

    t: Level
    s: Level
    index: int
    num_steps: int
    past: list[tuple[Level, Tensor]]
    denoise: Callable[[Tensor, Level], Tensor]
    noise: Callable[[], Tensor]
    variance_fraction: Tensor | None = None

    @property
    def h(self) -> float:
        """lambda_s - lambda_t, positive."""
        return self.s.lam - self.t.lam

    @property
    def decay(self) -> float:
        """e^-h = (sigma_s / alpha_s) / (sigma_t / alpha_t), finite wherever t is not data."""
        return self.t.alpha * self.s.sigma / (self.s.alpha * self.t.sigma)


def ddim_step(x_t: Batch, x0_hat: Batch, t: Level, s: Level) -> Batch:
    """x_s if x0_hat is right all along the step: Song et al. 2020, arXiv 2010.02502, eq. 12 without noise."""
    ratio = s.sigma / t.sigma
    return ratio * x_t + (s.alpha - ratio * t.alpha) * x0_hat


class Sampler(ABC):
    """x_t and x0_hat to x_s. An instance may remember its last step, so each trajectory makes its own.

    Attributes:
        eta: the fraction of new noise, 0 to 1, of the samplers that have one; None for the others.
        stochastic: whether new noise is added.
    """

    eta: float | None = None
    stochastic = False

    def __init__(self, eta: float | None = None):
        if eta is None:
            return
        if self.eta is None or not 0 <= eta <= 1:
            with_eta = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.eta is not None)
            raise ValueError(f"eta must be from 0 to 1, and only {with_eta} have it, got {eta!r}")
        self.eta = eta

    @abstractmethod
    def step(self, x_t: Batch, x0_hat: Batch, at: Step) -> Batch:
        """x at level at.s."""


class DDPM(Sampler):
    """x_s ~ q(x_s | x_t, x_0 = x0_hat): mean and variance of the exact posterior, or the network's variance.

        mean = (alpha_ts sigma_s^2 x_t + alpha_s beta x0_hat) / sigma_t^2,   alpha_ts = alpha_t / alpha_s
        beta = sigma_t^2 - alpha_ts^2 sigma_s^2,   beta-tilde = beta sigma_s^2 / sigma_t^2

    The variance is beta-tilde, exact where x_0 is known, or the geometric mean of it and beta that the network chose.
    Source: Ho et al. 2020, arXiv 2006.11239, eq. 6-7; Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15.
    """

    large, stochastic = False, True

    def step(self, x_t: Batch, x0_hat: Batch, at: Step) -> Batch:
        t, s = at.t, at.s
        alpha_ts = t.alpha / s.alpha
        beta = t.sigma**2 - alpha_ts**2 * s.sigma**2  # what the forward process adds between s and t
        mean = (alpha_ts * s.sigma**2 * x_t + s.alpha * beta * x0_hat) / t.sigma**2
        if s.sigma == 0:
            return mean  # x0_hat: the last step adds no noise
        beta_tilde = beta * s.sigma**2 / t.sigma**2
        if at.variance_fraction is not None and not self.large:
            low, high = math.log(beta_tilde), math.log(beta)
            return mean + (0.5 * (low + (at.variance_fraction + 1) / 2 * (high - low))).exp() * at.noise()
        return mean + math.sqrt(beta if self.large else beta_tilde) * at.noise()


class DDPMLarge(DDPM):
    """DDPM with the variance beta, exact where x_0 is standard normal noise itself; needs small steps."""

    large = True


class DDIM(Sampler):
    """To x0_hat and back along the old noise, of which `eta` replaces a fraction: 0 is the ODE, 1 is DDPM.

    Source: Song et al. 2020, arXiv 2010.02502, eq. 12 and 16.
    """

    eta = 0.0

    def step(self, x_t: Batch, x0_hat: Batch, at: Step) -> Batch:
        t, s = at.t, at.s
        eps = (x_t - t.alpha * x0_hat) / t.sigma
        new = self.eta * s.sigma * math.sqrt(1 - at.decay**2)  # eta 1: the square root of beta-tilde
        x_s = s.alpha * x0_hat + math.sqrt(s.sigma**2 - new**2) * eps
        return x_s + new * at.noise() if new else x_s


class Euler(Sampler):
    """Euler's method on the probability-flow ODE.

    With y = x / n and r = sigma / n the ODE is dy/dr = (y - x0_hat) / r, both for n = alpha (the sigma space of Karras
    et al. 2022, arXiv 2206.00364, with r from 80 to 0) and for n = alpha + sigma (rectified flow, r from 1 to 0). One
    step of Euler's is the same x_s in both, and in every such space: `ddim_step`. Here it is written in the second,
    which is finite at pure noise.
    """

    def step(self, x_t: Batch, x0_hat: Batch, at: Step) -> Batch:
        return self.advance(x_t, self.slope(x_t, x0_hat, at.t, rectified), at.t, at.s, rectified)

    @staticmethod
    def slope(x: Batch, x0_hat: Batch, level: Level, n: "Norm") -> Batch:
        """dy/dr at a level."""
        return (x - n(level) * x0_hat) / level.sigma

    @staticmethod
    def advance(x_t: Batch, slope: Batch, t: Level, s: Level, n: "Norm") -> Batch:
        """x_s, following a slope from x_t."""
        return n(s) * (x_t / n(t) + (s.sigma / n(s) - t.sigma / n(t)) * slope)


Norm = Callable[[Level], float]


def rectified(level: Level) -> float:
    return level.alpha + level.sigma


class Heun(Euler):
    """Euler's step, then again with the mean of the slopes at both ends: second order, two calls a step but the last.

    Here the space matters. This one is that of rectified flow, n = alpha + sigma, where a first step from pure noise is
    as good as any; it is diffusers' flow-matching Heun.
    """

    @staticmethod
    def space(t: Level) -> Norm:
        """The n for a step from t."""
        return rectified

    def step(self, x_t: Batch, x0_hat: Batch, at: Step) -> Batch:
        t, s, n = at.t, at.s, self.space(at.t)
        first = self.slope(x_t, x0_hat, t, n)
        guess = self.advance(x_t, first, t, s, n)
        if s.sigma == 0:
            return guess
        second = self.slope(guess, at.denoise(guess, s), s, n)
        return self.advance(x_t, (first + second) / 2, t, s, n)


class HeunEDM(Heun):
    """Heun's method over sigma / alpha, as in Karras et al. 2022, arXiv 2206.00364, algorithm 1, and diffusers' Heun.

    It needs a grid whose sigma / alpha falls gently from the start (karras, logsnr). A step from pure noise, where that
    ratio is infinite, is taken as in `Heun`.
    """

    @staticmethod
    def space(t: Level) -> Norm:
        return rectified if t.alpha == 0 else lambda level: level.alpha


class EulerAncestral(Euler):
    """Euler's step to less noise than wanted, and new noise on top. With eta 1 the step is DDPM's, number for number.

    Source: the ancestral sampler of k-diffusion; sigma_down^2 + sigma_up^2 = sigma_s^2, sigma_up^2 = beta-tilde eta^2.
    """

    eta, stochastic = 1.0, True

    def step(self, x_t: Batch, x0_hat: Batch, at: Step) -> Batch:
        up = self.eta * at.s.sigma * math.sqrt(1 - at.decay**2)
        down = replace(at.s, sigma=math.sqrt(at.s.sigma**2 - up**2))
        x_s = super().step(x_t, x0_hat, replace(at, s=down))
        return x_s + up * at.noise() if up else x_s


class DPMSolver2M(Sampler):
    """DPM-Solver++: x0_hat as a polynomial in lambda through this and earlier steps, the rest of the ODE exactly.

        x_s = ddim_step + alpha_s (1 - e^-h) D / 2,   D = h dx0_hat/dlambda from the last two values

    The order drops to what the history allows at the start, to 1 on the step to the data, and to the number of steps
    left in runs of fewer than 15, as in diffusers. Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2.
    """

    order = 2

    def effective_order(self, at: Step) -> int:
        """The order of this step."""
        if at.s.sigma == 0:
            return 1
        left = at.num_steps - at.index if at.num_steps < 15 else self.order
        return min(self.order, 1 + len(at.past), left)

    def step(self, x_t: Batch, x0_hat: Batch, at: Step) -> Batch:
        order, x_s = self.effective_order(at), ddim_step(x_t, x0_hat, at.t, at.s)
        if order == 1:
            return x_s
        return x_s + 0.5 * at.s.alpha * (1 - at.decay) * first_difference(x0_hat, at)


class DPMSolver3M(DPMSolver2M):
    """The third-order form as published and as in diffusers; it converges with order 2: see `DPMSolver3MTaylor`."""

    order = 3
    second_derivative_scale = 1

    def step(self, x_t: Batch, x0_hat: Batch, at: Step) -> Batch:
        if self.effective_order(at) < 3:
            return super().step(x_t, x0_hat, at)
        first, second = divided_differences(x0_hat, at)
        h, growth = at.h, math.expm1(-at.h)
        correction = ((growth + h) / h**2 - 0.5) * (self.second_derivative_scale * second)
        x_s = ddim_step(x_t, x0_hat, at.t, at.s)
        return x_s + at.s.alpha * ((growth / h + 1) * first - correction)


class DPMSolver3MTaylor(DPMSolver3M):
    """The third-order form with the second derivative of x0_hat where it belongs.

    The divided difference over three points is half the second derivative, and the published multistep formula takes
    it for the whole. Only steps with full history are of third order. The error of the first two, of order 1 and 2, is
    negligible where x0_hat hardly changes, in nearly pure noise: from sigma / alpha = 10 with 16 to 128 steps the
    measured order is 3.0. With more steps it tends to 2 (2.6 with 64 to 512); from sigma / alpha = 2 it is 2.3 and 2.1.
    With few steps either form may be the more accurate.
    """

    second_derivative_scale = 2


class DPMSolverSDE2M(DPMSolver2M):
    """DPM-Solver++ for the reverse SDE: its first order is DDPM. Source: Lu et al. 2022, arXiv 2211.01095."""

    stochastic = True

    def step(self, x_t: Batch, x0_hat: Batch, at: Step) -> Batch:
        t, s, decay = at.t, at.s, at.decay
        gain = s.alpha * (1 - decay**2)
        x_s = s.sigma / t.sigma * decay * x_t + gain * x0_hat
        if self.effective_order(at) > 1:
            x_s = x_s + 0.5 * gain * first_difference(x0_hat, at)
        return x_s + s.sigma * math.sqrt(1 - decay**2) * at.noise() if s.sigma else x_s


def first_difference(x0_hat: Batch, at: Step) -> Batch:
    """h times the slope of x0_hat in lambda through its last two values: its expected change over this step."""
    level, before = at.past[-1]
    return (x0_hat - before) * (at.h / (at.t.lam - level.lam))


def divided_differences(x0_hat: Batch, at: Step) -> tuple[Batch, Batch]:
    """h times the slope at t, and h^2 times the second divided difference, from the last three values."""
    (older, oldest_hat), (newer, newer_hat) = at.past[-2:]
    r0, r1 = (at.t.lam - newer.lam) / at.h, (newer.lam - older.lam) / at.h
    late, early = (x0_hat - newer_hat) / r0, (newer_hat - oldest_hat) / r1
    second = (late - early) / (r0 + r1)
    return late + r0 * second, second


class UniPC(DPMSolver2M):
    """Predictor and corrector of second order, B(h) = e^h - 1: x0_hat at a new point first corrects the step to it.

    The network is called once per step, at the predicted point. The corrector adds one to the order where the first
    steps do not matter, as for `DPMSolver3MTaylor`: from sigma / alpha = 10 with 16 to 128 steps 2.9 is measured; with
    more steps, or a start with more signal, it tends to 2. Source: Zhao et al. 2023, arXiv 2302.04867.
    """

    previous: tuple[Tensor, Tensor, Step, int] | None = None  # of the last step: x_t, x0_hat, itself, its order

    def effective_order(self, at: Step) -> int:
        return min(self.order, 1 + len(at.past), at.num_steps - at.index) if at.s.sigma else 1

    def step(self, x_t: Batch, x0_hat: Batch, at: Step) -> Batch:
        if self.previous is not None:
            x_t = self.correct(x0_hat, *self.previous)
        self.previous = (x_t, x0_hat, at, self.effective_order(at))
        return super().step(x_t, x0_hat, at)

    @staticmethod
    def correct(x0_hat_s: Batch, x_t: Batch, x0_hat: Batch, at: Step, order: int) -> Batch:
        """The step from x_t to at.s again, now that x0_hat at its end is known."""
        x_s, gain = ddim_step(x_t, x0_hat, at.t, at.s), at.s.alpha * (1 - at.decay)
        change = x0_hat_s - x0_hat
        if order == 1:
            return x_s + 0.5 * gain * change
        level, before = at.past[-1]
        r = (level.lam - at.t.lam) / at.h  # negative; the two points are r and 1
        growth = math.expm1(-at.h)
        first = (growth / -at.h - 1) / growth
        second = 2 * ((growth / -at.h - 1) / -at.h - 0.5) / growth
        weight = (second - first) / (r - 1)  # solves weight + rest = first, r weight + rest = second
        return x_s + gain * (weight * (before - x0_hat) / r + (first - weight) * change)


SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": DDPM,
    "ddpm_large": DDPMLarge,
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "heun_edm": HeunEDM,
    "euler_ancestral": EulerAncestral,
    "dpmpp_2m": DPMSolver2M,
    "dpmpp_3m": DPMSolver3M,
    "dpmpp_3m_taylor": DPMSolver3MTaylor,
    "dpmpp_2m_sde": DPMSolverSDE2M,
    "unipc": UniPC,
}
