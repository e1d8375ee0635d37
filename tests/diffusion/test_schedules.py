"""The noise process against closed forms and against diffusers' schedulers."""

import itertools
import math

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_cases import NAMES, inner_times, theirs

from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.schedules import SCHEDULES, TABLES

# ---- schedules ----


@pytest.mark.parametrize("name", NAMES)
def test_tables_equal_the_stock_schedulers(name):
    torch.testing.assert_close(SCHEDULES[name]().alphas_cumprod.float(), theirs(name).alphas_cumprod, rtol=2e-4, atol=0)


def test_terminal_values_are_the_published_ones():
    """alpha-bar at the last of 1000 steps, of DDPM's, Stable Diffusion's and the cosine schedule."""
    for name, value in (("linear", 4.03583e-5), ("scaled_linear", 4.6601e-3), ("cosine", 2.4288e-9)):
        assert SCHEDULES[name]().alphas_cumprod[-1].item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_scales_keep_their_law_and_snr_falls(name):
    schedule, t = SCHEDULES[name](), inner_times()
    alpha, sigma = schedule.scales(t)
    law = {"flow": alpha + sigma, "karras": alpha}.get(name, alpha**2 + sigma**2)
    torch.testing.assert_close(law, torch.ones_like(t), rtol=0, atol=1e-14)
    assert (schedule.logsnr(t).diff() < 0).all()
    torch.testing.assert_close(schedule.logsnr(t), 2 * (alpha / sigma).log(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.norm(t), (alpha**2 + sigma**2).sqrt())


@pytest.mark.parametrize("name, shift", list(itertools.product(SCHEDULES, (1.0, 3.0))))
def test_time_is_the_inverse_of_logsnr(name, shift):
    schedule, t = SCHEDULES[name](shift), inner_times()
    torch.testing.assert_close(schedule.time(schedule.logsnr(t)), t, rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(SCHEDULES)), st.floats(0.25, 4), st.floats(-7, 7))
def test_logsnr_is_the_inverse_of_time(name, shift, value):
    schedule = SCHEDULES[name](shift)
    wanted = torch.tensor([value], dtype=torch.float64)
    t = schedule.time(wanted)
    if schedule.first_time <= t <= 0.999:  # elsewhere the schedule does not reach so far
        torch.testing.assert_close(schedule.logsnr(t), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_shift_divides_the_snr_by_its_square(name):
    """Pooling 2 x 2 pixels multiplies the snr by 4: a picture twice as large needs shift 2 for the same pooled snr."""
    schedule, shifted = SCHEDULES[name](), SCHEDULES[name](2.0)
    knots = torch.arange(5, 1000, 5, dtype=torch.float64) / 1000  # between a table's steps the angle is interpolated
    torch.testing.assert_close(shifted.logsnr(knots), schedule.logsnr(knots) - 2 * math.log(2), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_zero_is_data_and_time_one_is_noise(name):
    schedule = SCHEDULES[name]()
    (alpha_0, alpha_1), (sigma_0, sigma_1) = schedule.scales(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert alpha_0 == 1 and sigma_0 <= 0.0021 and alpha_1 / sigma_1 < 0.07  # scaled_linear ends at 0.068


@pytest.mark.parametrize("name", TABLES)
def test_zero_terminal_snr_ends_in_nothing_but_noise(name):
    rescaled, plain = SCHEDULES[name](zero_terminal_snr=True), SCHEDULES[name]()
    assert rescaled.alphas_cumprod[-1] == 0 and rescaled.scales(torch.ones(1))[1] == 1
    torch.testing.assert_close(rescaled.alphas_cumprod[0], plain.alphas_cumprod[0])
    if name in NAMES:
        table = theirs(name, rescale_betas_zero_snr=True).alphas_cumprod
        torch.testing.assert_close(rescaled.alphas_cumprod.float(), table, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_timesteps_are_the_stock_indices(name):
    schedule = SCHEDULES[name]()
    index = torch.tensor([0, 1, 499, 999])
    t = (index + 1).double() / 1000
    torch.testing.assert_close(schedule.timestep(t), index.double())
    torch.testing.assert_close(schedule.scales(t)[0] ** 2, schedule.alphas_cumprod[index])


def test_karras_is_the_stock_edm_scheduler():
    edm = EDMDPMSolverMultistepScheduler(sigma_min=0.002, sigma_max=80, sigma_data=1.0, prediction_type="v_prediction")
    edm.set_timesteps(12)
    schedule, generator = SCHEDULES["karras"](), torch.Generator().manual_seed(0)
    t = torch.linspace(1, 0, 12, dtype=torch.float64)
    torch.testing.assert_close(schedule.scales(t)[1].float(), edm.sigmas[:-1])
    torch.testing.assert_close(schedule.timestep(t).float(), edm.timesteps)
    assert schedule.norm(t[0]).item() == pytest.approx(float(edm.init_noise_sigma), rel=1e-6)
    process, x_t = NoiseProcess("karras", "v_prediction"), torch.randn(1, 2, generator=generator, dtype=torch.float64)
    prediction = torch.randn(1, 2, generator=generator, dtype=torch.float64)
    wanted = edm.precondition_outputs(x_t, prediction, edm.sigmas[3].double())
    torch.testing.assert_close(process.predict_x0(x_t, prediction, t[3:4]), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        process.network_input(x_t, t[3:4]), edm.precondition_inputs(x_t, edm.sigmas[3].double()), rtol=1e-5, atol=1e-6
    )
