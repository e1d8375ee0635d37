"""The noise process against closed forms and against diffusers' schedulers."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EDMDPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.diffusion.loss_weighting import LOSS_WEIGHTS
from ldm.diffusion.parameterization import PREDICTIONS, convert
from ldm.diffusion.process import NoiseProcess, expand_to
from ldm.diffusion.schedules import SCHEDULES, TABLES
from ldm.diffusion.time_sampling import TIME_DENSITIES
from ldm.diffusion.variational import gaussian_kl, log_variance_range, posterior, step_bound, variational_loss

PREDICTED = {"flow": "flow", "karras": "v_prediction", **dict.fromkeys(TABLES, "v_prediction")}
RANGES = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "cosine": (1e-4, 0.02)}
NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def pair(count=64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 4, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2)]


def theirs(name, **options):
    first, last = RANGES[name]
    return DDPMScheduler(beta_schedule=NAMES[name], beta_start=first, beta_end=last, **options)


def inner_times(count=400):
    return torch.linspace(0.002, 0.998, count, dtype=torch.float64)


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


# ---- predictions ----


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_prediction_gives_every_other(name):
    x0, eps = pair()
    t = torch.linspace(0.01, 0.95, len(x0), dtype=torch.float64)
    alpha, sigma = (expand_to(scale, x0) for scale in SCHEDULES[name]().scales(t))
    x_t = alpha * x0 + sigma * eps
    value = {kind: a * x0 + b * eps for kind, (a, b) in ((k, rule(alpha, sigma)) for k, rule in PREDICTIONS.items())}
    for source, target in itertools.product(PREDICTIONS, repeat=2):
        found = convert(value[source], x_t, alpha, sigma, source, target)
        torch.testing.assert_close(found, value[target], rtol=1e-7, atol=1e-7, msg=f"{source} to {target}")


def test_predictions_are_what_their_names_say():
    alpha, sigma = torch.tensor(0.6).double(), torch.tensor(0.8).double()
    x0, eps = torch.tensor(2.0).double(), torch.tensor(-1.0).double()
    wanted = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0, "flow": eps - x0}
    wanted["score"] = -(alpha * x0 + sigma * eps - alpha * x0) / sigma**2  # of N(alpha x0, sigma^2)
    for kind, rule in PREDICTIONS.items():
        a, b = rule(alpha, sigma)
        torch.testing.assert_close(a * x0 + b * eps, wanted[kind])


@pytest.mark.parametrize("name", NAMES)
def test_corruption_and_v_equal_diffusers(name):
    x0, eps = pair()
    steps = torch.linspace(0, 999, len(x0)).long()
    t = (steps + 1).double() / 1000
    process = NoiseProcess(name, "v_prediction")
    torch.testing.assert_close(
        process.corrupt(x0, eps, t), theirs(name).add_noise(x0, eps, steps), rtol=1e-3, atol=1e-4
    )
    velocity = theirs(name).get_velocity(x0, eps, steps)
    torch.testing.assert_close(process.target(x0, eps, t), velocity, rtol=1e-3, atol=1e-4)


def test_flow_target_is_the_derivative_of_the_path():
    x0, eps = pair(8)
    process, t, h = NoiseProcess(), torch.full((8,), 0.4, dtype=torch.float64), 1e-6
    slope = (process.corrupt(x0, eps, t + h) - process.corrupt(x0, eps, t - h)) / (2 * h)
    torch.testing.assert_close(slope, process.target(x0, eps, t), rtol=1e-6, atol=1e-6)


# ---- times ----


@pytest.mark.parametrize("name, process", list(itertools.product(TIME_DENSITIES, ("flow", "cosine", "karras"))))
def test_times_lie_where_sampling_goes(name, process):
    drawn = NoiseProcess(process, PREDICTED[process], timesteps=name)
    t = drawn.draw_times(4096, torch.Generator().manual_seed(0))
    assert t.dtype == torch.float32 and t.min() >= drawn.schedule.first_time and t.max() <= 1


def test_times_follow_their_laws():
    def draw(name, **options):
        return NoiseProcess(timesteps=name, **options).draw_times(4096, torch.Generator().manual_seed(0)).double()

    uniform = draw("uniform")
    assert ((uniform.sort().values * 4096).floor() == torch.arange(4096)).all()  # one in each stratum
    loose = draw("uniform", stratified=False)
    assert ((loose * 4096).floor().unique().numel()) < 3000 and abs(loose.mean() - 0.5) < 0.02
    normal = draw("logit_normal").logit()
    assert abs(normal.mean()) < 0.01 and abs(normal.std() - 1) < 0.02
    # mode of cosmap: density 2 / (pi (1 - 2t + 2t^2)), so a quarter of the mass lies below t = 1 - 1/(tan(pi/8) + 1)
    assert (draw("cosmap") < 1 - 1 / (math.tan(math.pi / 8) + 1)).double().mean() == pytest.approx(0.25, abs=1e-3)
    karras = NoiseProcess("karras", "v_prediction", timesteps="log_normal")
    sigma = karras.schedule.scales(karras.draw_times(4096, torch.Generator().manual_seed(0)).double())[1]
    assert abs(sigma.log().mean() + 1.2) < 0.02 and abs(sigma.log().std() - 1.2) < 0.02


def test_shifted_flow_times_are_the_published_map():
    plain, shifted = SCHEDULES["flow"](), SCHEDULES["flow"](3.0)
    t = inner_times()
    moved = 3 * t / (1 + 2 * t)
    torch.testing.assert_close(shifted.scales(t)[1], plain.scales(moved)[1])
    torch.testing.assert_close(shifted.timestep(t), 1000 * moved)


def test_a_learned_variance_is_trained_at_whole_steps():
    t = NoiseProcess("linear", "epsilon", learned_variance=True).draw_times(512, torch.Generator().manual_seed(0))
    torch.testing.assert_close((1000 * t).round() / 1000, t)
    assert t.min() >= 0.001 and t.max() <= 1


# ---- weights ----


@pytest.mark.parametrize("name", sorted(set(LOSS_WEIGHTS) - {"uniform", "learned"}))
def test_a_weight_weighs_the_same_error_in_x0_alike(name):
    """weight x squared error of the prediction is w(snr) |x0 error|^2, whatever is predicted."""
    t = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)
    x0, eps = pair(50)
    for prediction in ("epsilon", "v_prediction", "sample"):
        process = NoiseProcess("cosine", prediction, weight=name)
        alpha, sigma = (expand_to(scale, x0) for scale in process.scales(t))
        wrong = x0 + 0.1
        implied = (process.corrupt(x0, eps, t) - alpha * wrong) / sigma
        error = (process.target(wrong, implied, t) - process.target(x0, eps, t)).square().mean((1, 2, 3))
        snr = (alpha / sigma).flatten() ** 2
        torch.testing.assert_close(
            process.loss_weight(t) * error, LOSS_WEIGHTS[name](snr) * 0.01, rtol=1e-6, atol=1e-12
        )


def test_weights_have_their_published_forms():
    t = inner_times(50)
    eps, v = (
        lambda name, kind=kind, **o: NoiseProcess("cosine", kind, weight=name, **o)
        for kind in ("epsilon", "v_prediction")
    )
    alpha, sigma = eps("uniform").scales(t)
    snr = (alpha / sigma) ** 2
    table = {
        "min_snr": snr.clamp(max=5) / snr,
        "soft_min_snr": 5 / (5 + snr),
        "p2": 1 / (1 + snr),
        "sigmoid": torch.sigmoid(2 - snr.log()),
        "debiased": snr**-0.5,
        "uniform": torch.ones_like(snr),
    }
    for name, wanted in table.items():
        torch.testing.assert_close(eps(name).loss_weight(t), wanted, rtol=1e-6, atol=1e-9, msg=name)
    torch.testing.assert_close(v("edm").loss_weight(t), torch.ones_like(t), rtol=1e-6, atol=1e-9)  # EDM trains v evenly
    torch.testing.assert_close(v("min_snr").loss_weight(t), snr.clamp(max=5) / (snr + 1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        eps("min_snr", weight_parameter=1.0).loss_weight(t), snr.clamp(max=1) / snr, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("name, process", list(itertools.product(LOSS_WEIGHTS, ("flow", "karras", "cosine"))))
def test_weights_are_finite_at_both_ends(name, process):
    weights = NoiseProcess(process, PREDICTED[process], weight=name).loss_weight(torch.tensor([0.0, 0.5, 1.0]))
    assert torch.isfinite(weights).all() and (weights >= 0).all()


# ---- one step back ----


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
