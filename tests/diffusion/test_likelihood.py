"""The variational bound and the ODE's likelihood against exact answers."""

import itertools
import math

import numpy as np
import pytest
import torch

from ldm.data.toy import exact_denoiser, toy_named
from ldm.diffusion.likelihood import (
    BIN,
    angles,
    bits_per_dim,
    dequantise,
    exact_trace,
    hutchinson_trace,
    log_level,
    log_likelihood,
    signs,
    squared_errors,
    variational_bound,
)
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.variational import gaussian_kl

ALL = ["flow", "linear", "cosine", "karras"]
LOG_2PI = math.log(2 * math.pi)


def gaussian_denoiser(schedule, mean, variance):
    """E[x0 | x_t] for x0 ~ N(mean, variance); both may be tensors that broadcast against x."""

    def denoise(x_t, t):
        alpha, sigma = schedule.scales(t)
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x_t - alpha * mean)

    return denoise


def corners(variance):
    """Four points x0 and the noise for each: what a polynomial of degree 3 in both takes for their Gaussian average."""
    one = torch.ones(2, 2, dtype=torch.float64)
    x0 = math.sqrt(variance) * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).view(-1, 1)
    return x0, lambda like: torch.cat([one.new_tensor([1, -1, 1, -1])]).view(like.shape)


def mean_squared_error(schedule, variance, num_steps):
    t = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    alpha, sigma = schedule.scales(t)
    return sigma**2 * variance / (alpha**2 * variance + sigma**2)


# ---- the variational bound -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("name", ALL)
def test_with_the_exact_reverse_variance_the_gap_is_the_divergence_from_the_prior(name, variance):
    """E[bound] - E[-ln p(x0)] = KL(q(x_1) || prior): nothing is lost on the way, however few the steps."""
    schedule = SCHEDULES[name]()
    x0, noise = corners(variance)
    alpha, sigma = schedule.scales(torch.ones((), dtype=torch.float64))
    norm = schedule.norm(torch.ones((), dtype=torch.float64))
    lost = gaussian_kl(torch.zeros(()), (alpha**2 * variance + sigma**2).log(), torch.zeros(()), 2 * norm.log())
    for num_steps in (2, 40):
        mmse = mean_squared_error(schedule, variance, num_steps)
        denoise = gaussian_denoiser(schedule, 0.0, variance)
        bound = variational_bound(denoise, x0, schedule, num_steps, "optimal", mmse, noise=noise)
        entropy = 0.5 * (LOG_2PI + 1 + math.log(variance))
        torch.testing.assert_close(bound.total.mean(), entropy + lost, rtol=0, atol=1e-9)
        assert torch.allclose(squared_errors(denoise, x0, schedule, num_steps, noise), mmse)


@pytest.mark.parametrize(
    "variance, exact, smallest",
    [(0.25, 2.29e-10, 0.456), pytest.param(4.0, 3.66e-9, 0.470, marks=pytest.mark.slow)],
)
def test_known_gaps_of_the_thousand_steps_of_ddpm(variance, exact, smallest):
    """The exact variance loses next to nothing, beta-tilde almost half a nat before the last step, beta less."""
    schedule, (x0, noise) = SCHEDULES["linear"](), corners(variance)
    denoise = gaussian_denoiser(schedule, 0.0, variance)
    mmse = mean_squared_error(schedule, variance, 1000)
    best = variational_bound(denoise, x0, schedule, 1000, "optimal", mmse, noise=noise)
    gap = best.total.mean() - 0.5 * (LOG_2PI + 1 + math.log(variance))
    assert abs(gap - exact) < 1e-2 * exact + 1e-11
    losses = {}
    for kind in ("small", "large"):
        steps = variational_bound(denoise, x0, schedule, 1000, kind, noise=noise).steps
        assert (steps.mean(1) - best.steps.mean(1)).min() > -1e-12  # no step is better than with the exact variance
        losses[kind] = (steps - best.steps).mean(1)[1:].sum().item()
    print(variance, gap.item(), losses)
    assert abs(losses["small"] - smallest) < 1e-3
    assert 0 < losses["large"] < losses["small"]


def test_a_learned_share_goes_from_the_small_to_the_large_variance():
    schedule, (x0, noise) = SCHEDULES["cosine"](), corners(1.0)
    plain = gaussian_denoiser(schedule, 0.0, 1.0)
    for share, kind in ((-1.0, "small"), (1.0, "large")):

        def told(x, t, share=share):
            return plain(x, t), torch.full_like(x, share)

        learned = variational_bound(told, x0, schedule, 50, "learned", noise=noise)
        fixed = variational_bound(plain, x0, schedule, 50, kind, noise=noise)
        torch.testing.assert_close(learned.steps, fixed.steps)
        torch.testing.assert_close(learned.total, fixed.steps.sum(0) + fixed.prior)
    with pytest.raises(ValueError, match="needs a network that was trained with"):
        variational_bound(plain, x0, schedule, 50, "learned")
    with pytest.raises(ValueError, match="variance must be one of"):
        variational_bound(plain, x0, schedule, 50, "beta")
    with pytest.raises(ValueError, match="mmse goes with"):
        variational_bound(plain, x0, schedule, 50, "optimal")


def test_the_levels_of_pixels_share_the_whole_mass():
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, std in ((0.0, 0.3), (0.97, 0.05), (-1.5, 0.01), (0.2, 1e-4)):
        log_mass = log_level(levels, torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
        torch.testing.assert_close(log_mass.logsumexp(0), torch.zeros((), dtype=torch.float64), atol=1e-9, rtol=0)
    far = log_level(levels[:1], torch.ones(1, dtype=torch.float64), torch.full((1,), 0.01, dtype=torch.float64))
    assert torch.isfinite(far) and far < -1e4  # far out in the tail, still a number


def test_pixels_of_one_known_level_cost_no_bits_and_even_ones_eight():
    schedule = SCHEDULES["linear"]()
    x0 = torch.zeros(4, 1, 2, 2) + 51 / 127.5 - 1

    def denoise(x_t, t):
        return torch.full_like(x_t, 51 / 127.5 - 1)

    bound = variational_bound(denoise, x0, schedule, 100, "optimal", torch.zeros(100), discrete=True)
    assert bits_per_dim(bound.total, discrete=True).max() < 1e-3
    even = torch.full((1,), math.log(2 + BIN), dtype=torch.float64)  # -ln of the density on [-1 - BIN/2, 1 + BIN/2]
    torch.testing.assert_close(bits_per_dim(even, discrete=False), torch.full_like(even, 8.0))
    spread = dequantise(torch.zeros(1000), torch.Generator().manual_seed(0))
    assert spread.abs().max() <= BIN / 2 and abs(spread.std() - BIN / math.sqrt(12)) < 1e-4


# ---- the ODE -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_ode_gives_the_density_of_a_gaussian_in_three_dimensions(name):
    """It moves every point to the same quantile of x_1, whose density under the prior is what the model says."""
    schedule, floor = SCHEDULES[name](), 2e-3
    mean = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)
    variance = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
    quantile = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0 = mean + (variance + floor**2).sqrt() * quantile
    alpha, sigma = schedule.scales(torch.ones((), dtype=torch.float64))
    std = (alpha**2 * variance + sigma**2).sqrt()
    prior, norm = alpha * mean + std * quantile, schedule.norm(torch.ones((), dtype=torch.float64))
    expected = -0.5 * ((prior / norm) ** 2 + LOG_2PI).sum(1) + (std / norm / (variance + floor**2).sqrt()).log().sum()
    denoise = gaussian_denoiser(schedule, mean, variance)
    found = log_likelihood(denoise, x0, schedule, 60, floor=floor)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        log_likelihood(denoise, x0, schedule, 300, "heun", floor=floor), found, atol=1e-3, rtol=0
    )
    if alpha < 1e-3:  # then x_1 is the prior, and the model's density the data's
        exact = -0.5 * ((x0 - mean) ** 2 / variance + LOG_2PI + variance.log()).sum(1)
        torch.testing.assert_close(found, exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["flow", "cosine"])
def test_ode_gives_the_density_of_eight_gaussians(name):
    toy, schedule = toy_named("8_gaussians"), SCHEDULES[name]()
    generator = torch.Generator().manual_seed(1)
    points = torch.from_numpy(toy.sample(16, np.random.default_rng(0)))
    points[8:] += 0.3 * torch.randn(8, 2, generator=generator, dtype=torch.float64)  # and off the modes
    found = log_likelihood(exact_denoiser(toy, schedule), points, schedule, 120, floor=1e-4)
    torch.testing.assert_close(found, toy.log_density(points), atol=1e-3, rtol=0)


def test_the_order_of_the_integrators():
    schedule = SCHEDULES["flow"]()
    x0 = torch.tensor([[0.7]], dtype=torch.float64)
    denoise = gaussian_denoiser(schedule, 0.0, 0.25)
    for method, order in (("heun", 2), ("rk4", 4)):
        errors = []
        for num_steps in (24, 48, 96):
            found = log_likelihood(denoise, x0, schedule, num_steps, method, floor=1e-3)
            errors.append(abs(found + 0.5 * (x0**2 / 0.250001 + LOG_2PI + math.log(0.250001))).item())
        slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
        print(method, errors, slopes)
        assert all(abs(slope - order) < 0.5 for slope in slopes), (errors, slopes)


def test_the_grid_ends_at_pure_noise():
    for name in ALL:
        schedule = SCHEDULES[name]()
        phi = angles(schedule, 1e-2, 50)
        alpha, sigma = schedule.scales(torch.ones((), dtype=torch.float64))
        assert len(phi) == 51 and (phi.diff() > 0).all()
        torch.testing.assert_close(phi[-1], torch.atan2(sigma, alpha))


def test_hutchinson_is_unbiased_and_exact_for_diagonal_maps():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    output = (x @ matrix).tanh()
    trace = exact_trace(output, x)
    expected = torch.stack(
        [torch.autograd.functional.jacobian(lambda r: (r @ matrix).tanh(), row).trace() for row in x]
    )
    torch.testing.assert_close(trace, expected)
    every = [
        torch.tensor(v, dtype=torch.float64).expand(3, 4)
        for v in torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).tolist()
    ]
    torch.testing.assert_close(hutchinson_trace(output, x, every), trace)  # all 16 probes are the whole expectation
    draws = torch.stack([hutchinson_trace(output, x, [signs(x)]) for _ in range(500)])
    assert ((draws.mean(0) - trace).abs() < 4 * draws.std(0) / math.sqrt(500)).all()
    assert torch.allclose(hutchinson_trace(x**3, x, [signs(x)]), (3 * x**2).sum(1))
    schedule = SCHEDULES["flow"]()
    denoise = gaussian_denoiser(schedule, 0.0, torch.tensor([0.3, 2.0], dtype=torch.float64))
    points = x.detach()[:, :2]
    torch.testing.assert_close(
        log_likelihood(denoise, points, schedule, 30, probes=1), log_likelihood(denoise, points, schedule, 30)
    )
