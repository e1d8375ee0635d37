"""One step back: the exact posterior, and the variational bound."""

import math
from typing import TYPE_CHECKING

from ldm.diffusion.process import NoiseProcess, previous_step, rows
from ldm.diffusion.schedules import Schedule

if TYPE_CHECKING:
    from torch import Tensor


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
