"""The reverse process of a diffusion model: the posterior q(x_s | x_t, x_0), and the variational bound's terms."""

import math

from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.process import Batch, NoiseProcess, expand_to, whole_steps
from ldm.diffusion.schedules import Schedule, Times


def posterior(schedule: Schedule, t: Times, s: Times) -> tuple[Times, Times, Times]:
    """q(x_s | x_t, x_0) for s < t: the coefficients of x_t and x_0 in its mean, and its variance.

        alpha_ts = alpha_t / alpha_s        variance_ts = sigma_t^2 - alpha_ts^2 sigma_s^2
        mean = (alpha_ts sigma_s^2 x_t + alpha_s variance_ts x_0) / sigma_t^2
        variance = variance_ts sigma_s^2 / sigma_t^2

    Source: Kingma et al. 2021, arXiv 2107.00630, app. A; Ho et al. 2020, arXiv 2006.11239, eq. 6-7, for adjacent steps.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.scales(t), schedule.scales(s)
    alpha_ts = alpha_t / alpha_s
    variance_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
    return alpha_ts * sigma_s**2 / sigma_t**2, alpha_s * variance_ts / sigma_t**2, variance_ts * sigma_s**2 / sigma_t**2


def log_variance_range(schedule: Schedule, t: Times, s: Times) -> tuple[Times, Times]:
    """ln beta-tilde and ln beta from t to s: the smallest and the largest sensible reverse variance.

    Where s = 0 and beta-tilde is 0, it is that of the following step, as in Nichol and Dhariwal 2021, sec. 3.1.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.scales(t), schedule.scales(s)
    beta = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    following = t + (t - s)
    beta_tilde = posterior(schedule, t, s)[2]
    beta_tilde = beta_tilde.where(s > 0, posterior(schedule, following, t)[2])
    return beta_tilde.clamp(min=1e-20).log(), beta.clamp(min=1e-20).log()


def gaussian_kl(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """KL(N(mean_1, exp(log_variance_1)) || N(mean_2, exp(log_variance_2))) in nats, elementwise, broadcasting."""
    ratio = (log_variance_1 - log_variance_2).exp()
    distance = (mean_1 - mean_2) ** 2 * (-log_variance_2).exp()
    return 0.5 * (ratio + distance - 1 - (log_variance_1 - log_variance_2))


def step_bound(
    schedule: Schedule, x0: Batch, x_t: Batch, x0_hat: Batch, log_variance: Tensor, t: Times, s: Times
) -> Float[Tensor, " b"]:
    """One term of the variational bound in nats per dimension.

    KL(q(x_s | x_t, x_0) || p(x_s | x_t)) for s > 0, and -ln p(x_0 | x_t) for s = 0, where p has the posterior's mean
    with x0_hat in place of x_0, and the given log-variance (broadcastable to x_0). Source: Ho et al. 2020, eq. 5.
    """
    from_x_t, from_x0, variance = (expand_to(value, x0) for value in posterior(schedule, t, s))
    mean, mean_hat = from_x_t * x_t + from_x0 * x0, from_x_t * x_t + from_x0 * x0_hat
    kl = gaussian_kl(mean, variance.clamp(min=1e-20).log(), mean_hat, log_variance)
    likelihood = 0.5 * (math.log(2 * math.pi) + log_variance + (x0 - mean_hat) ** 2 * (-log_variance).exp())
    return kl.where(expand_to(s, x0) > 0, likelihood).flatten(1).mean(1)


def variational_loss(
    process: NoiseProcess, x0: Batch, x_t: Batch, prediction: Batch, variance_fraction: Batch, t: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """The bound's term at each t, as the loss that trains the reverse variance and nothing else.

    ln variance = (v + 1) / 2 ln beta + (1 - v) / 2 ln beta-tilde, with the network's `variance_fraction` v, -1 to 1.
    The mean is held fixed. Source: Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15 and 16.
    """
    _, s = whole_steps(t)
    low, high = (expand_to(end, x0) for end in log_variance_range(process.schedule, t, s))
    log_variance = low + (variance_fraction + 1) / 2 * (high - low)
    x0_hat = process.predict_x0(x_t, prediction, t).detach()
    return step_bound(process.schedule, x0, x_t, x0_hat, log_variance, t, s)
