"""The order of every sampler, measured on the exact ODE of eight Gaussians."""

import math

import numpy as np
import pytest
import torch

from ldm.data.toy import EightGaussians, Gaussian, exact_denoiser
from ldm.diffusion.schedules import SCHEDULES
from ldm.evaluation.toys.sampler_convergence import convergence, slope, solve

ORDERS = {
    "euler": 1,
    "ddim": 1,
    "heun": 2,
    "heun_edm": 2,
    "dpmpp_2m": 2,
    "dpmpp_3m": 2,  # as published and in diffusers, see ldm.diffusion.samplers.DPMSolver3MTaylor
    "dpmpp_3m_taylor": 3,
    "unipc": 3,  # a corrector of second order, which gains one
}


@pytest.fixture(scope="module")
def measured():
    toy, schedule = EightGaussians(), SCHEDULES["flow"]()
    noise = torch.randn(24, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.from_numpy(toy.sample(24, np.random.default_rng(0))) + 10 * noise
    found = convergence(exact_denoiser(toy, schedule), schedule, list(ORDERS), x, steps=(16, 32, 64, 128))
    return {each.sampler: each for each in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDERS)
def test_every_sampler_has_its_order(measured, name):
    errors = ", ".join(f"{error:.1e}" for error in measured[name].errors)
    print(f"{name}: order {measured[name].order:.2f}, errors {errors} at 16, 32, 64, 128 steps")
    assert measured[name].order == pytest.approx(ORDERS[name], abs=0.3)
    assert all(np.diff(measured[name].errors) < 0)


def test_euler_is_ddim_and_second_order_is_worth_it(measured):
    assert measured["euler"].errors == pytest.approx(measured["ddim"].errors, rel=1e-9)
    for name in ("heun", "heun_edm", "dpmpp_2m", "dpmpp_3m", "dpmpp_3m_taylor", "unipc"):
        assert measured[name].errors[0] < measured["euler"].errors[0] / 3


@pytest.mark.parametrize("process", ["flow", "cosine", "karras"])
def test_the_reference_is_the_closed_form_on_a_gaussian(process):
    """z = x / alpha of N(m, v) data keeps its place in standard deviations, sqrt(v + r^2) at sigma / alpha = r."""
    schedule, ratios = SCHEDULES[process](), (10.0, 0.05)
    z = torch.linspace(-20, 20, 9, dtype=torch.float64)[:, None]
    found = solve(exact_denoiser(Gaussian(1.0, 0.5), schedule), schedule, z, ratios)
    scale = math.sqrt((0.25 + ratios[1] ** 2) / (0.25 + ratios[0] ** 2))
    torch.testing.assert_close(found, 1 + (z - 1) * scale, rtol=1e-6, atol=1e-7)


def test_the_slope_of_a_power_is_its_exponent():
    assert slope([1, 2, 4], [1.0, 0.125, 1 / 64]) == pytest.approx(3)


def test_a_sampler_with_new_noise_is_refused():
    with pytest.raises(ValueError, match="without new noise .* got ddpm"):
        convergence(lambda x, t: x, SCHEDULES["flow"](), ["ddpm", "euler"], torch.zeros(1, 2).double())
