"""The noise process against closed forms and against diffusers' schedulers."""

import itertools

import pytest
import torch
from diffusers import DDPMScheduler

from ldm.noise import NoiseProcess, discrete_alphas_cumprod

DISCRETE = list(itertools.product(("cosine", "scaled_linear"), ("v_prediction", "epsilon")))
ALL = [("flow", "flow"), *DISCRETE]


def pair(count=64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 4, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("process, schedule", [("cosine", "squaredcos_cap_v2"), ("scaled_linear", "scaled_linear")])
def test_alphas_cumprod_equal_the_exported_scheduler(process, schedule):
    ranges = {"beta_start": 0.00085, "beta_end": 0.012}
    theirs = DDPMScheduler(beta_schedule=schedule, **ranges).alphas_cumprod
    torch.testing.assert_close(discrete_alphas_cumprod(process).float(), theirs, rtol=2e-4, atol=1e-8)


@pytest.mark.parametrize("process, prediction", ALL)
def test_scales_keep_their_law(process, prediction):
    t = torch.linspace(0.001, 0.999, 300, dtype=torch.float64)
    alpha, sigma = NoiseProcess(process, prediction).scales(t)
    total = alpha + sigma if process == "flow" else alpha**2 + sigma**2
    torch.testing.assert_close(total, torch.ones_like(total))
    assert (alpha.diff() <= 0).all() and (sigma.diff() >= 0).all()


@pytest.mark.parametrize("process, prediction", ALL)
def test_the_right_prediction_gives_the_clean_sample_back(process, prediction):
    x0, eps = pair()
    t = torch.linspace(0.01, 0.95, len(x0), dtype=torch.float64)
    noise = NoiseProcess(process, prediction)
    found = noise.predict_x0(noise.corrupt(x0, eps, t), noise.target(x0, eps, t), t)
    torch.testing.assert_close(found, x0, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("process, prediction", DISCRETE)
def test_corruption_and_v_equal_diffusers(process, prediction):
    x0, eps = pair()
    t = torch.linspace(0.0, 0.999, len(x0), dtype=torch.float64)
    noise = NoiseProcess(process, prediction)
    schedule = "squaredcos_cap_v2" if process == "cosine" else process
    theirs = DDPMScheduler(beta_schedule=schedule, beta_start=0.00085, beta_end=0.012)
    steps = noise.timestep(t)
    torch.testing.assert_close(noise.corrupt(x0, eps, t), theirs.add_noise(x0, eps, steps), rtol=1e-3, atol=1e-4)
    if prediction == "v_prediction":
        torch.testing.assert_close(noise.target(x0, eps, t), theirs.get_velocity(x0, eps, steps), rtol=1e-3, atol=1e-4)


def test_flow_target_is_the_derivative_of_the_path():
    x0, eps = pair(8)
    noise, t, h = NoiseProcess(), torch.full((8,), 0.4, dtype=torch.float64), 1e-6
    slope = (noise.corrupt(x0, eps, t + h) - noise.corrupt(x0, eps, t - h)) / (2 * h)
    torch.testing.assert_close(slope, noise.target(x0, eps, t), rtol=1e-6, atol=1e-6)


def test_times_follow_their_laws():
    uniform = NoiseProcess(timesteps="uniform").draw_times(4096, torch.Generator().manual_seed(0))
    assert ((uniform.sort().values * 4096).floor() == torch.arange(4096)).all()  # one in each stratum
    normal = NoiseProcess().draw_times(4096, torch.Generator().manual_seed(0)).logit()
    assert abs(normal.mean()) < 0.01 and abs(normal.std() - 1) < 0.02
    shifted = NoiseProcess(timesteps="uniform", shift=3.0).draw_times(4096, torch.Generator().manual_seed(0))
    torch.testing.assert_close(shifted, 3 * uniform / (1 + 2 * uniform))


@pytest.mark.parametrize("process", ["cosine", "scaled_linear"])
def test_min_snr_weighs_the_same_error_in_x0_alike(process):
    """weight(eps) * |eps error|^2 and weight(v) * |v error|^2 are both min(snr, gamma) * |x0 error|^2."""
    t = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)
    x0, eps = pair(50)
    wrong = x0 + 0.1
    for prediction in ("epsilon", "v_prediction"):
        noise = NoiseProcess(process, prediction, min_snr_gamma=5.0)
        alpha, sigma = noise.scales(t)
        x_t = noise.corrupt(x0, eps, t)
        implied = (x_t - alpha.view(-1, 1, 1, 1) * wrong) / sigma.view(-1, 1, 1, 1)
        error = (noise.target(wrong, implied, t) - noise.target(x0, eps, t)).square().mean((1, 2, 3))
        snr = (alpha / sigma) ** 2
        torch.testing.assert_close(noise.loss_weight(t) * error, snr.clamp(max=5) * 0.01, rtol=1e-6, atol=1e-9)
