"""Posterior, reverse variance and variational bound against closed forms."""

import math

import numpy as np
import pytest
import torch
from noise_cases import pair

from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.schedules import SCHEDULES, TABLES
from ldm.diffusion.variational import gaussian_kl, log_variance_range, posterior, step_bound, variational_loss


@pytest.mark.parametrize("name", TABLES)
def test_the_posterior_is_ddpms(name):
    """Ho et al. 2020, eq. 6 and 7, in their letters."""
    schedule = SCHEDULES[name]()
    bar = schedule.alphas_cumprod
    index = torch.arange(1, 1000)
    beta = 1 - bar[index] / bar[index - 1]
    x0_coefficient = bar[index - 1].sqrt() * beta / (1 - bar[index])
    x_t_coefficient = (1 - beta).sqrt() * (1 - bar[index - 1]) / (1 - bar[index])
    variance = (1 - bar[index - 1]) / (1 - bar[index]) * beta
    t = (index + 1).double() / 1000
    found = posterior(schedule, t, t - 0.001)
    for value, wanted in zip(found, (x_t_coefficient, x0_coefficient, variance)):
        torch.testing.assert_close(value, wanted, rtol=1e-7, atol=1e-13)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_posterior_leads_from_one_marginal_to_the_other(name):
    """Mean and variance of x_s given x0, by way of x_t, are alpha_s x0 and sigma_s^2."""
    schedule = SCHEDULES[name]()
    t, s = torch.tensor(0.7).double(), torch.tensor(0.3).double()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.scales(t), schedule.scales(s)
    from_x_t, from_x0, variance = posterior(schedule, t, s)
    torch.testing.assert_close(from_x_t * alpha_t + from_x0, alpha_s)
    torch.testing.assert_close(from_x_t**2 * sigma_t**2 + variance, sigma_s**2)


def test_the_range_of_the_reverse_variance_is_beta_tilde_to_beta():
    schedule = SCHEDULES["cosine"]()
    t = torch.tensor([0.001, 0.002, 0.5, 1.0], dtype=torch.float64)
    low, high = log_variance_range(schedule, t, t - 0.001)
    bar = torch.cat([torch.ones(1).double(), schedule.alphas_cumprod])
    index = (t * 1000).round().long()
    torch.testing.assert_close(high.exp(), 1 - bar[index] / bar[index - 1], rtol=1e-6, atol=0)
    assert (low <= high).all() and torch.isfinite(low).all() and low[0] == low[1]


def test_the_kl_of_two_gaussians():
    """Against the integral, by quadrature."""
    x = np.linspace(-20, 20, 200_001)
    p, q = (np.exp(-((x - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v) for m, v in ((0.5, 1.3), (-1.0, 2.2)))
    wanted = np.trapezoid(p * np.log(p / q), x)
    values = [torch.tensor(number, dtype=torch.float64) for number in (0.5, math.log(1.3), -1.0, math.log(2.2))]
    assert gaussian_kl(*values).item() == pytest.approx(wanted, abs=1e-9)


def test_the_bound_teaches_the_variance_that_the_error_asks_for():
    """With x0_hat off by a fixed amount, the best log-variance is ln(beta-tilde + (mean error)^2)."""
    schedule = SCHEDULES["linear"]()
    t, s = torch.tensor([0.5]).double(), torch.tensor([0.499]).double()
    x0 = torch.zeros(1, 1).double()
    _, from_x0, variance = posterior(schedule, t, s)
    log_variance = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_variance], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = step_bound(schedule, x0, x0, x0 + 3.0, log_variance, t, s).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert log_variance.item() == pytest.approx((variance + (3 * from_x0) ** 2).log().item(), abs=1e-3)


def test_the_variational_loss_leaves_the_mean_alone():
    process = NoiseProcess("cosine", "epsilon", learned_variance=True)
    x0, eps = (tensor.flatten(1) for tensor in pair(8))
    t = process.draw_times(8, torch.Generator().manual_seed(0)).double()
    prediction, share = (torch.zeros_like(x0, requires_grad=True) for _ in range(2))
    variational_loss(process, x0, process.corrupt(x0, eps, t), prediction, share, t).sum().backward()
    assert prediction.grad is None and share.grad.abs().sum() > 0
