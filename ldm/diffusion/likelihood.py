"""How probable the data are under a diffusion model: the variational bound, and the exact density of its ODE.

Both take a denoise function (x_t, t) -> x0_hat and a schedule, compute in float64, and speak of nats; bits per
dimension are for pixels.

    bound  -ln p(x_0) <= KL(q(x_1|x_0) || prior) + sum of KL(q(x_s|x_t,x_0) || p(x_s|x_t)) + E[-ln p(x_0|x_t1)]
    exact  ln p(x_0) = ln N(z_1; 0, 1) + integral of the divergence of dz/dphi along the trajectory

With z = x_t / sqrt(alpha^2 + sigma^2) and tan phi = sigma / alpha every schedule is the same motion
z = cos(phi) x_0 + sin(phi) eps, from phi near 0, data, up to pi / 2, pure noise;
dz/dphi = (cos(phi) z - x0_hat) / sin(phi).
Source: Ho et al. 2020, arXiv 2006.11239, eq. 5; Song et al. 2021, arXiv 2011.13456, app. D.2.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ldm.diffusion.process import Batch
from ldm.diffusion.sampling import Denoise
from ldm.diffusion.schedules import Schedule
from ldm.diffusion.variational import gaussian_kl, log_variance_range, posterior, step_bound

Noise = Callable[[Tensor], Tensor]  # a tensor -> independent numbers of mean 0 and variance 1 of its shape
Time = Float64[Tensor, ""]
Slope = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (z, phi) -> dz/dphi and its divergence (B,)
VARIANCES = ("small", "large", "learned", "optimal")
BIN = 2 / 255  # the width of one of 256 grey levels in [-1, 1]
MIN_LOGSNR = -16.0  # down to which the grid is even in logsnr; below it there is nothing but noise


# ---- the variational bound ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """The terms of -ln p(x0) <= ..., in nats per dimension.

    Attributes: times (T,), the t of each term; steps (T, B), the first of which is -ln p(x0 | x_t); prior (B,).
    """

    times: Float64[Tensor, " steps"]
    steps: Float64[Tensor, "steps b"]
    prior: Float64[Tensor, " b"]

    @property
    def total(self) -> Float64[Tensor, " b"]:
        return self.steps.sum(0) + self.prior


@torch.no_grad()
def variational_bound(
    denoise: Denoise,
    x0: Batch,
    schedule: Schedule,
    num_steps: int = 1000,
    variance: str = "small",
    mmse: Float[Tensor, " steps"] | None = None,
    discrete: bool = False,
    noise: Noise = torch.randn_like,
) -> Bound:
    """The bound of a chain of `num_steps` equal steps of time, with one sample of x_t for each term.

    Args:
        denoise: (x_t (B, ...), t ()) -> x0_hat, or (x0_hat, variance fraction) with a learned variance.
        x0: (B, ...); with `discrete` made of the 256 levels k / 127.5 - 1.
        variance: of the reverse steps: "small" is beta-tilde, the posterior's, "large" is beta, "learned" the network's
            own, "optimal" the best for a Gaussian that does not depend on x_t (Bao et al. 2022, arXiv 2201.06503).
        mmse: for "optimal": E (x0 - x0_hat)^2 per dimension at each time, (num_steps,); see `squared_errors`.
        discrete: the last step gives each level the mass of its bin, as in Ho et al. 2020, sec. 3.3; the bound is then
            on probabilities and not on densities.
        noise: what draws eps.

    Raises: ValueError for a variance that is unknown or lacks what it needs.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {VARIANCES}, got {variance!r}")
    if (variance == "optimal") != (mmse is not None):
        raise ValueError("mmse goes with variance 'optimal', and only with it")
    x0 = x0.double()
    times, terms = time_steps(num_steps), []
    for i, t in enumerate(times):
        s = torch.tensor(i / num_steps, dtype=torch.float64)
        x_t = _corrupt(schedule, x0, t, noise)
        x0_hat, fraction = _x0_and_variance(denoise(x_t, t))
        error = None if mmse is None else mmse[i]
        if i == 0:  # the data themselves, however little noise the schedule has at t = 0
            log_variance = _log_variance(variance, schedule, t, s, fraction, error) if error is None else _log(error)
            log_p = log_level if discrete else log_normal
            terms.append(-log_p(x0, x0_hat, (log_variance / 2).exp()).flatten(1).mean(1))
        else:
            log_variance = _log_variance(variance, schedule, t, s, fraction, error)
            terms.append(step_bound(schedule, x0, x_t, x0_hat, log_variance, t, s))
    return Bound(times, torch.stack(terms), prior_kl(schedule, x0))


def time_steps(num_steps: int) -> Float64[Tensor, " steps"]:
    """t = 1 / T, 2 / T, ..., 1."""
    return torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps


def prior_kl(schedule: Schedule, x0: Batch) -> Float64[Tensor, " b"]:
    """KL(q(x_1 | x_0) || N(0, norm^2)) in nats per dimension."""
    one = torch.ones((), dtype=torch.float64)
    (alpha, sigma), norm = schedule.scales(one), schedule.norm(one)
    return gaussian_kl(alpha * x0.double(), 2 * sigma.log(), torch.zeros(()), 2 * norm.log()).flatten(1).mean(1)


@torch.no_grad()
def squared_errors(
    denoise: Denoise, x0: Batch, schedule: Schedule, num_steps: int, noise: Noise = torch.randn_like
) -> Float64[Tensor, " steps"]:
    """The mean of (x0 - x0_hat)^2 over a batch and its dimensions at each time step, (num_steps,)."""
    x0 = x0.double()
    errors = []
    for t in time_steps(num_steps):
        x0_hat, _ = _x0_and_variance(denoise(_corrupt(schedule, x0, t, noise), t))
        errors.append((x0 - x0_hat).square().mean())
    return torch.stack(errors)


def log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """ln of the density of N(mean, std^2), elementwise."""
    return -0.5 * (((x - mean) / std).square() + math.log(2 * math.pi)) - std.log()


def log_level(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """ln of the mass that N(mean, std^2) gives to the bins of the levels x in [-1, 1]; the outer bins are endless."""
    upper = ((x + BIN / 2 - mean) / std).masked_fill(x > 1 - BIN / 2, math.inf)
    lower = ((x - BIN / 2 - mean) / std).masked_fill(x < -1 + BIN / 2, -math.inf)
    flip = lower + upper > 0  # the two tails are the same, and the left one is the precise one
    high, low = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log1p(-(torch.special.log_ndtr(low) - log_high).exp().clamp(max=1 - 1e-15))


def _corrupt(schedule: Schedule, x0: Batch, t: Time, noise: Noise) -> Batch:
    alpha, sigma = schedule.scales(t)
    return alpha * x0 + sigma * noise(x0)


def _x0_and_variance(prediction: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """x0_hat, and the variance fraction if there is one, in float64."""
    x0_hat, fraction = prediction if isinstance(prediction, tuple) else (prediction, None)
    return x0_hat.double(), None if fraction is None else fraction.double()


def _log(variance: Tensor) -> Tensor:
    return variance.clamp(min=1e-20).log()


def _log_variance(
    variance: str, schedule: Schedule, t: Time, s: Time, fraction: Tensor | None, mmse: Float[Tensor, ""] | None
) -> Tensor:
    if variance == "optimal":
        _, from_x0, own = posterior(schedule, t, s)
        return _log(own + from_x0**2 * mmse)
    low, high = log_variance_range(schedule, t, s)
    if variance == "learned":
        if fraction is None:
            raise ValueError("variance 'learned' needs a network that was trained with noise.learned_variance")
        return low + (fraction + 1) / 2 * (high - low)
    return low if variance == "small" else high


# ---- exact likelihood by the probability-flow ODE -------------------------------------------------------------------


def log_likelihood(
    denoise: Denoise,
    x0: Batch,
    schedule: Schedule,
    num_steps: int = 100,
    method: str = "rk4",
    probes: int | None = None,
    floor: float | None = None,
    noise: Noise | None = None,
) -> Float64[Tensor, " b"]:
    """ln p(x_0) in nats, summed over dimensions.

    Args:
        denoise: as in `variational_bound`; differentiable.
        x0: (B, ...), continuous.
        num_steps: intervals of the grid, even in logsnr.
        method: "rk4" (4 calls of the network per interval) or "heun" (2).
        probes: None = the exact trace, d backward passes per call; else Hutchinson's estimate from so many random
            vectors, the same along the whole trajectory, so that ln p is unbiased but for the solver's error.
        floor: sigma / alpha where the data are taken to lie, for the density of points themselves is a limit; None =
            1e-3, or that of training's first time. The result is the density of x0 blurred by that much.
        noise: draws the probes; None = random signs.
    """
    first = torch.tensor(max(schedule.first_time, 0.0), dtype=torch.float64)
    alpha, sigma = schedule.scales(first)
    floor = max(1e-3, float(sigma / alpha)) if floor is None else floor
    dims = x0[0].numel()
    vectors = None if probes is None else [(noise or signs)(x0.double()) for _ in range(probes)]

    def slope(z: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        return _slope(denoise, schedule, z, phi, vectors)

    grid = angles(schedule, floor, num_steps)
    z = grid[0].cos() * x0.double()
    log_volume = torch.full((len(x0),), float(dims * grid[0].cos().log()), dtype=torch.float64, device=x0.device)
    for here, there in itertools.pairwise(grid):
        z, gained = STEPS[method](slope, z, here, there)
        log_volume = log_volume + gained
    prior = -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    return prior + log_volume


def angles(schedule: Schedule, floor: float, num_steps: int) -> Float64[Tensor, " n"]:
    """num_steps + 1 values of phi, from arctan(floor) to that of t = 1: even in logsnr, but for the last if endless."""
    last = float(schedule.logsnr(torch.ones((), dtype=torch.float64)))
    logsnr = torch.linspace(
        -2 * math.log(floor), max(last, MIN_LOGSNR), num_steps + (last >= MIN_LOGSNR), dtype=torch.float64
    )
    phi = (-logsnr / 2).exp().atan()
    return phi if last >= MIN_LOGSNR else torch.cat([phi, torch.tensor([-last / 2], dtype=torch.float64).exp().atan()])


def _slope(
    denoise: Denoise, schedule: Schedule, z: Batch, phi: Time, vectors: list[Tensor] | None
) -> tuple[Batch, Float64[Tensor, " b"]]:
    """dz/dphi, and its divergence."""
    t = schedule.time(-2 * phi.tan().log()) if phi < math.pi / 2 - 1e-12 else torch.ones((), dtype=torch.float64)
    norm = schedule.norm(t)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        x0_hat, _ = _x0_and_variance(denoise(norm * z, t))
        trace = exact_trace(x0_hat, z) if vectors is None else hutchinson_trace(x0_hat, z, vectors)
    dims = z[0].numel()
    return (phi.cos() * z - x0_hat).detach() / phi.sin(), (dims * phi.cos() - trace) / phi.sin()


def exact_trace(output: Batch, x: Batch) -> Float[Tensor, " b"]:
    """The trace of d output / d x for each row; one backward pass for each of the d dimensions."""
    flat, total = output.flatten(1), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for k in range(flat.shape[1]):
        total = total + _gradient(flat[:, k].sum(), x).flatten(1)[:, k]
    return total


def hutchinson_trace(output: Batch, x: Batch, vectors: list[Tensor]) -> Float[Tensor, " b"]:
    """The mean of v' (d output / d x) v over the vectors v: the trace in expectation (Hutchinson 1989)."""
    products = [(_gradient((output * v).sum(), x) * v).flatten(1).sum(1) for v in vectors]
    return torch.stack(products).mean(0)


def _gradient(total: Tensor, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(total, x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def signs(like: Tensor) -> Tensor:
    """Independent +1 and -1 (Rademacher), which give the least variance."""
    return torch.randint(0, 2, like.shape, device=like.device).to(like.dtype) * 2 - 1


def heun(slope: Slope, z: Batch, a: Time, b: Time) -> tuple[Batch, Float64[Tensor, " b"]]:
    """One step of second order from a to b: the new z, and what ln of the volume gains."""
    h = b - a
    v1, d1 = slope(z, a)
    v2, d2 = slope(z + h * v1, b)
    return z + h / 2 * (v1 + v2), h / 2 * (d1 + d2)


def rk4(slope: Slope, z: Batch, a: Time, b: Time) -> tuple[Batch, Float64[Tensor, " b"]]:
    """One step of fourth order, classical Runge-Kutta."""
    h, middle = b - a, (a + b) / 2
    v1, d1 = slope(z, a)
    v2, d2 = slope(z + h / 2 * v1, middle)
    v3, d3 = slope(z + h / 2 * v2, middle)
    v4, d4 = slope(z + h * v3, b)
    return z + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4), h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)


STEPS = {"heun": heun, "rk4": rk4}


# ---- pixels and latents ---------------------------------------------------------------------------------------------


def bits_per_dim(nats_per_dim: Tensor, discrete: bool) -> Tensor:
    """Bits for each of 256 levels: from nats of their probabilities, or of the density on [-1, 1]."""
    return nats_per_dim / math.log(2) + (0.0 if discrete else math.log2(1 / BIN))


def dequantise(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The levels of x in [-1, 1], each spread evenly over its bin: E ln p(result) bounds ln of the level's mass."""
    return x + BIN * (torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5).to(x.device)
