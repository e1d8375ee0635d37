"""Samplers: from noise back to data, one class with one `step` each, one loop for all.

Everything is said in alpha, sigma and lambda = ln(alpha / sigma), so each sampler works with every schedule of
`schedules`: x_t = alpha x0 + sigma eps. A denoiser gives x0_hat, its best guess of x0; while that guess holds, x moves
on the line between x0_hat and eps, and that move is exact:

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x0_hat                           (`glide`)

It is DDIM, it is Euler's method, and it is the first order of DPM-Solver++ and UniPC; samplers differ in how they
foresee x0_hat changing on the way, and in whether they replace some of the old noise by new. The end of a grid, t = 0,
is the data itself: sigma_s = 0 and x_s = x0_hat. The start may be nothing but noise: alpha_t = 0 and lambda = -inf are
fine everywhere.

Torch is imported where tensors are made and not at the top, so that `ldm.config` can offer the names defined here.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ldm.diffusion.time_grids import Level

if TYPE_CHECKING:
    from torch import Tensor


# ---- what a step is told --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """From level t to level s, and what a sampler may use on the way.

    Attributes:
        index, count: this is step `index` of `count`, the first is 0.
        past: earlier (level, x0_hat), newest last; pure noise left out, whose lambda is not finite.
        denoise: (x, level) -> x0_hat there: one more call of the network.
        noise: () -> standard normal noise of x's shape.
        share: what the network says about the variance, see `denoise_with`; or None.
    """

    t: Level
    s: Level
    index: int
    count: int
    past: "list[tuple[Level, Tensor]]"
    denoise: "Callable[[Tensor, Level], Tensor]"
    noise: "Callable[[], Tensor]"
    share: "Tensor | None" = None

    @property
    def h(self) -> float:
        """lambda_s - lambda_t, positive."""
        return self.s.lam - self.t.lam

    @property
    def decay(self) -> float:
        """e^-h = (sigma_s / alpha_s) / (sigma_t / alpha_t), finite wherever t is not data."""
        return self.t.alpha * self.s.sigma / (self.s.alpha * self.t.sigma)


def glide(x_t: "Tensor", x0_hat: "Tensor", t: Level, s: Level) -> "Tensor":
    """x_s if x0_hat were the truth all the way: Song et al. 2020, arXiv 2010.02502, eq. 12 with no noise."""
    keep = s.sigma / t.sigma
    return keep * x_t + (s.alpha - keep * t.alpha) * x0_hat


# ---- samplers -------------------------------------------------------------------------------------------------------


class Sampler(ABC):
    """x_t and x0_hat to x_s. An instance may remember its last step, so each trajectory makes its own.

    Attributes:
        eta: the share of new noise, 0 to 1, of the samplers that have one; None for the others.
        draws: whether new noise comes in.
    """

    eta: float | None = None
    draws = False

    def __init__(self, eta: float | None = None):
        if eta is None:
            return
        if self.eta is None or not 0 <= eta <= 1:
            with_eta = ", ".join(name for name, kind in SAMPLERS.items() if kind.eta is not None)
            raise ValueError(f"eta must be from 0 to 1, and only {with_eta} have it, got {eta!r}")
        self.eta = eta

    @abstractmethod
    def step(self, x_t: "Tensor", x0_hat: "Tensor", at: Step) -> "Tensor":
        """x at level at.s, of x_t's shape."""


class DDPM(Sampler):
    """Draws x_s from q(x_s | x_t, x0 = x0_hat): mean and variance of the exact posterior, or the network's variance.

    The variance is beta-tilde, right where x0 is known; or a power mean of it and beta that the network chose.
    Source: Ho et al. 2020, arXiv 2006.11239, eq. 6-7; Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15.
    """

    large, draws = False, True

    def step(self, x_t, x0_hat, at):
        t, s = at.t, at.s
        alpha_ts = t.alpha / s.alpha
        beta = t.sigma**2 - alpha_ts**2 * s.sigma**2  # what the forward process adds between s and t
        mean = (alpha_ts * s.sigma**2 * x_t + s.alpha * beta * x0_hat) / t.sigma**2
        if s.sigma == 0:
            return mean  # x0_hat: the last step adds no noise
        beta_tilde = beta * s.sigma**2 / t.sigma**2
        if at.share is not None and not self.large:
            low, high = math.log(beta_tilde), math.log(beta)
            return mean + (0.5 * (low + (at.share + 1) / 2 * (high - low))).exp() * at.noise()
        return mean + math.sqrt(beta if self.large else beta_tilde) * at.noise()


class DDPMLarge(DDPM):
    """DDPM with the variance beta, right where x0 is standard normal noise itself; needs small steps."""

    large = True


class DDIM(Sampler):
    """To x0_hat and back along the old noise, of which `eta` replaces a share: 0 is the ODE, 1 is DDPM.

    Source: Song et al. 2020, arXiv 2010.02502, eq. 12 and 16.
    """

    eta = 0.0

    def step(self, x_t, x0_hat, at):
        t, s = at.t, at.s
        eps = (x_t - t.alpha * x0_hat) / t.sigma
        fresh = self.eta * s.sigma * math.sqrt(1 - at.decay**2)  # eta 1: the square root of beta-tilde
        x_s = s.alpha * x0_hat + math.sqrt(s.sigma**2 - fresh**2) * eps
        return x_s + fresh * at.noise() if fresh else x_s


class Euler(Sampler):
    """Euler's method on the probability-flow ODE.

    With y = x / n and r = sigma / n the ODE is dy/dr = (y - x0_hat) / r, both for n = alpha (the sigma space of Karras
    et al. 2022, arXiv 2206.00364, with r from 80 to 0) and for n = alpha + sigma (rectified flow, r from 1 to 0). One
    step of Euler's is the same x_s in both, and in every such space: `glide`. Here it is written in the second, which
    is finite at pure noise.
    """

    def step(self, x_t, x0_hat, at):
        return self.advance(x_t, self.slope(x_t, x0_hat, at.t, rectified), at.t, at.s, rectified)

    @staticmethod
    def slope(x, x0_hat, level, n):
        """dy/dr at a level."""
        return (x - n(level) * x0_hat) / level.sigma

    @staticmethod
    def advance(x_t, slope, t, s, n):
        """x_s, following a slope from x_t."""
        return n(s) * (x_t / n(t) + (s.sigma / n(s) - t.sigma / n(t)) * slope)


def rectified(level: Level) -> float:
    return level.alpha + level.sigma


class Heun(Euler):
    """Euler's step, then again with the mean of the slopes at both ends: second order, two calls a step but the last.

    Here the space matters. This one is that of rectified flow, n = alpha + sigma, where a first step from pure noise is
    as good as any; it is diffusers' flow-matching Heun.
    """

    @staticmethod
    def space(t: Level) -> Callable[[Level], float]:
        """The n for a step from t."""
        return rectified

    def step(self, x_t, x0_hat, at):
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
    def space(t):
        return rectified if t.alpha == 0 else lambda level: level.alpha


class EulerAncestral(Euler):
    """Euler's step to less noise than wanted, and new noise on top. With eta 1 the step is DDPM's, number for number.

    Source: the ancestral sampler of k-diffusion; sigma_down^2 + sigma_up^2 = sigma_s^2, sigma_up^2 = beta-tilde eta^2.
    """

    eta, draws = 1.0, True

    def step(self, x_t, x0_hat, at):
        up = self.eta * at.s.sigma * math.sqrt(1 - at.decay**2)
        down = replace(at.s, sigma=math.sqrt(at.s.sigma**2 - up**2))
        x_s = super().step(x_t, x0_hat, replace(at, s=down))
        return x_s + up * at.noise() if up else x_s


class DPMSolver2M(Sampler):
    """DPM-Solver++: x0_hat as a polynomial in lambda through this and earlier steps, the rest of the ODE exactly.

    The order falls to what is known at the start, to 1 on the step to the data, and to the number of steps left in
    runs of fewer than 15, as in diffusers. Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2.
    """

    order = 2

    def usable(self, at: Step) -> int:
        """The order of this step."""
        if at.s.sigma == 0:
            return 1
        left = at.count - at.index if at.count < 15 else self.order
        return min(self.order, 1 + len(at.past), left)

    def step(self, x_t, x0_hat, at):
        order, x_s = self.usable(at), glide(x_t, x0_hat, at.t, at.s)
        if order == 1:
            return x_s
        if order == 2:
            return x_s + 0.5 * at.s.alpha * (1 - at.decay) * difference(x0_hat, at)
        first, second = differences(x0_hat, at)
        h, grown = at.h, math.expm1(-at.h)
        return x_s + at.s.alpha * ((grown / h + 1) * first - ((grown + h) / h**2 - 0.5) * self.curvature(second))

    def curvature(self, second):
        return second


class DPMSolver3M(DPMSolver2M):
    """The third-order form as published and as in diffusers. Its order is 2: see `DPMSolver3MTaylor`."""

    order = 3


class DPMSolver3MTaylor(DPMSolver3M):
    """The third-order form with the second derivative of x0_hat where it belongs: its order is 3.

    The divided difference over three points is half the second derivative, and the published multistep formula takes
    it for the whole. With few steps either one may be the more accurate.
    """

    def curvature(self, second):
        return 2 * second


class DPMSolverSDE2M(DPMSolver2M):
    """DPM-Solver++ for the reverse SDE: its first order is DDPM. Source: Lu et al. 2022, arXiv 2211.01095."""

    draws = True

    def step(self, x_t, x0_hat, at):
        t, s, decay = at.t, at.s, at.decay
        gain = s.alpha * (1 - decay**2)
        x_s = s.sigma / t.sigma * decay * x_t + gain * x0_hat
        if self.usable(at) > 1:
            x_s = x_s + 0.5 * gain * difference(x0_hat, at)
        return x_s + s.sigma * math.sqrt(1 - decay**2) * at.noise() if s.sigma else x_s


def difference(x0_hat: "Tensor", at: Step) -> "Tensor":
    """The change of x0_hat that the last two values promise for this step: h times its slope in lambda."""
    level, before = at.past[-1]
    return (x0_hat - before) * (at.h / (at.t.lam - level.lam))


def differences(x0_hat: "Tensor", at: Step) -> "tuple[Tensor, Tensor]":
    """h times the slope at t, and h^2 times the second divided difference, from the last three values."""
    (older, oldest_hat), (newer, newer_hat) = at.past[-2:]
    r0, r1 = (at.t.lam - newer.lam) / at.h, (newer.lam - older.lam) / at.h
    late, early = (x0_hat - newer_hat) / r0, (newer_hat - oldest_hat) / r1
    second = (late - early) / (r0 + r1)
    return late + r0 * second, second


class UniPC(DPMSolver2M):
    """Predictor and corrector of second order, B(h) = e^h - 1: x0_hat at a new point first mends the way there.

    The network is called once per step, at the predicted point. Source: Zhao et al. 2023, arXiv 2302.04867.
    """

    came: "tuple[Tensor, Tensor, Step, int] | None" = None  # where the last step began, its x0_hat, itself, its order

    def usable(self, at):
        return min(self.order, 1 + len(at.past), at.count - at.index) if at.s.sigma else 1

    def step(self, x_t, x0_hat, at):
        if self.came is not None:
            x_t = self.mend(x0_hat, *self.came)
        self.came = (x_t, x0_hat, at, self.usable(at))
        return super().step(x_t, x0_hat, at)

    @staticmethod
    def mend(arrived_hat, x_t, x0_hat, at, order):
        """The step from x_t to at.s again, now that x0_hat at its end is known."""
        x_s, gain = glide(x_t, x0_hat, at.t, at.s), at.s.alpha * (1 - at.decay)
        change = arrived_hat - x0_hat
        if order == 1:
            return x_s + 0.5 * gain * change
        level, before = at.past[-1]
        r = (level.lam - at.t.lam) / at.h  # negative; the two points are r and 1
        grown = math.expm1(-at.h)
        first = (grown / -at.h - 1) / grown
        second = 2 * ((grown / -at.h - 1) / -at.h - 0.5) / grown
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
