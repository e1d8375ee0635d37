"""Guidance against closed forms, and what it costs."""

from dataclasses import replace

import pytest
import torch

from ldm.diffusion.guidance import Guidance, guide, projected, rescaled
from ldm.diffusion.parameterization import convert
from ldm.diffusion.process import NoiseProcess, expand_to

PROCESSES = [
    ("flow", "flow"),
    *((name, kind) for name in ("linear", "cosine") for kind in ("epsilon", "v_prediction", "sample")),
    ("karras", "v_prediction"),
]
T = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
PROMPT, NULL = torch.full((3, 1, 1), 1.5, dtype=torch.float64), torch.zeros(3, 1, 1, dtype=torch.float64)


class Gaussian:
    """The exact network for N(condition, variance): what it predicts, in the coordinates it sees; counts its calls."""

    def __init__(self, process: NoiseProcess, variance: float = 0.49, extra: bool = False):
        self.process, self.variance, self.extra, self.rows = process, variance, extra, []

    def scales(self, x, t):
        alpha, sigma = (expand_to(scale, x) for scale in self.process.scales(t))
        seen = expand_to(self.process.schedule.input_scale(t), x)
        return seen * alpha, seen * sigma

    def __call__(self, x, t, condition):
        self.rows.append(len(x))
        alpha, sigma = self.scales(x, t)
        mean = condition.mean(1).view(-1, *[1] * (x.ndim - 1))
        total = alpha**2 * self.variance + sigma**2
        x0 = mean + alpha * self.variance / total * (x - alpha * mean)
        prediction = convert(x0, x, alpha, sigma, "sample", self.process.prediction_type)
        return torch.cat([prediction, condition.mean(1)[..., None, None].expand_as(x)], 1) if self.extra else prediction


def samples(shape=(3, 2, 2, 2), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def x0_of(model: Gaussian, prediction, x, t=T):
    return convert(prediction, x, *model.scales(x, t), model.process.prediction_type, "sample")


# ---- the rule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process, kind", PROCESSES)
def test_guided_score_of_two_gaussians_is_the_analytic_one(process, kind):
    """w grad log N(x; a m, v) + (1 - w) grad log N(x; 0, v) is the score of a Gaussian at a w m."""
    model, x, scale = Gaussian(NoiseProcess(process, kind)), samples(), 3.5
    prediction = guide(model, PROMPT, NULL, scale)(x, T)
    alpha, sigma = model.scales(x, T)
    score = convert(prediction, x, alpha, sigma, kind, "score")
    torch.testing.assert_close(score, -(x - alpha * scale * 1.5) / (alpha**2 * 0.49 + sigma**2), rtol=1e-8, atol=1e-8)


def test_scale_one_is_the_prompt_and_scale_zero_the_negative():
    model, x = Gaussian(NoiseProcess()), samples()
    for guidance in (1.0, Guidance(1.0, rescale=0.5, zero_star=True), Guidance(7.0, interval=(0.9, 1))):
        assert torch.equal(guide(model, PROMPT, NULL, guidance)(x, T), model(x, T, PROMPT))
    torch.testing.assert_close(guide(model, PROMPT, NULL, 0.0)(x, T), model(x, T, NULL))
    assert torch.equal(guide(model, PROMPT, None, 7.0)(x, T), model(x, T, PROMPT))


@pytest.mark.parametrize(
    "guidance", [Guidance(4.0), Guidance(4.0, zero_star=True), Guidance(4.0, zero_init=0.3)], ids=str
)
@pytest.mark.parametrize("process", ["linear", "cosine", "scaled_linear"])
def test_what_the_network_predicts_makes_no_difference(process, guidance):
    x, found = samples(), []
    for kind in ("epsilon", "v_prediction", "sample"):
        noise = NoiseProcess(process, kind)
        model = Gaussian(noise)
        found.append(x0_of(model, guide(model, PROMPT, NULL, guidance, process=noise)(x, T), x))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found[2], found[0], rtol=1e-6, atol=1e-8)


def test_variance_exploding_and_flow_are_guided_alike():
    """x / (alpha + sigma) at one ratio sigma / alpha is one and the same state, also for the rules about velocities."""
    flow, karras = NoiseProcess(), NoiseProcess("karras", "v_prediction")
    t = flow.schedule.time(karras.schedule.logsnr(T))
    guidance, x = Guidance(4.0, zero_star=True, zero_init=0.25), samples()
    one = Gaussian(flow)
    expected = x0_of(one, guide(one, PROMPT, NULL, replace(guidance, zero_init=0), process=flow)(x, t), x, t)
    other = Gaussian(karras)
    total = sum(other.scales(x, T))
    found = x0_of(other, guide(other, PROMPT, NULL, guidance, process=karras)(x * total, T), x * total)
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found[2], x[2])  # held: no velocity means x0 = eps = x


# ---- the refinements -----------------------------------------------------------------------------------------------


def test_the_interval_guides_inside_only_whichever_rows_those_are():
    model, x = Gaussian(NoiseProcess()), samples()
    out = guide(model, PROMPT, NULL, Guidance(4.0, interval=(0.2, 0.5)))(x, T)
    torch.testing.assert_close(out[:2], guide(model, PROMPT, NULL, 4.0)(x, T)[:2])
    torch.testing.assert_close(out[2], model(x, T, PROMPT)[2])


def test_the_rescale_restores_the_deviation_of_the_prompted_prediction():
    toward, guided = samples(seed=1), 3 * samples(seed=2) + 1
    over = (1, 2, 3)
    torch.testing.assert_close(rescaled(guided, toward, 1.0).std(over), toward.std(over))
    torch.testing.assert_close(rescaled(guided, toward, 0.0), guided)
    halfway = rescaled(guided, toward, 0.5)
    torch.testing.assert_close(halfway, (guided + rescaled(guided, toward, 1.0)) / 2)
    point = torch.ones(2, 1)
    assert torch.equal(rescaled(point, point, 1.0), point)  # one number has no deviation
    model = Gaussian(NoiseProcess("cosine", "v_prediction"))
    out = guide(model, PROMPT, NULL, Guidance(6.0, rescale=1.0))(toward, T)
    torch.testing.assert_close(out.std(over), model(toward, T, PROMPT).std(over))


def test_the_optimized_scale_is_the_least_squares_projection():
    away, toward = samples(seed=1), samples(seed=2)
    near = projected(away, toward)
    rest = (toward - near).flatten(1)
    torch.testing.assert_close((rest * away.flatten(1)).sum(1), torch.zeros(3, dtype=torch.float64))
    for wrong in (0.9, 1.1):
        assert ((toward - wrong * near).flatten(1).norm(dim=1) > rest.norm(dim=1)).all()
    assert torch.equal(projected(away * 0, toward), away * 0)
    torch.testing.assert_close(projected(away, 2 * away), 2 * away)  # then guidance changes nothing, at any scale

    def parallel(x, t, condition):
        return x * (1 + condition.mean(1)[..., None, None])

    out = guide(parallel, PROMPT, NULL, Guidance(9.0, zero_star=True))(away, T)
    torch.testing.assert_close(out, parallel(away, T, PROMPT))


@pytest.mark.parametrize("process, kind", PROCESSES)
def test_zero_init_holds_still(process, kind):
    noise, x = NoiseProcess(process, kind), samples()
    model, t = Gaussian(noise), torch.tensor([0.94, 0.96, 1.0], dtype=torch.float64)
    out = guide(model, PROMPT, NULL, Guidance(4.0, zero_init=0.05), process=noise)(x, t)
    velocity = convert(out, x, *model.scales(x, t), kind, "flow")
    assert velocity[1:].abs().max() < 1e-9
    torch.testing.assert_close(out[0], guide(model, PROMPT, NULL, 4.0)(x, t)[0])


def test_zero_init_counts_evenly_spaced_steps():
    starts = torch.linspace(1, 0.05, 20)
    for share, count in ((0.05, 1), (0.1, 2), (0.04, 1), (0.0, 0)):
        out = guide(lambda x, t, c: x, NULL.new_ones(20, 1, 1), None, Guidance(zero_init=share))(
            torch.ones(20, 1), starts
        )
        assert (out == 0).sum() == count


# ---- autoguidance, learned variance --------------------------------------------------------------------------------


def test_autoguidance_leads_away_from_the_weak_network():
    strong, weak = Gaussian(NoiseProcess()), Gaussian(NoiseProcess(), variance=1.0)
    x = samples()
    out = guide(strong, PROMPT, None, 2.5, weak=weak)(x, T)
    torch.testing.assert_close(out, 2.5 * strong(x, T, PROMPT) - 1.5 * weak(x, T, PROMPT))
    both = guide(strong, PROMPT, NULL, 2.5, weak=weak)(x, T)  # the weak one takes the negative prompt
    torch.testing.assert_close(both, 2.5 * strong(x, T, PROMPT) - 1.5 * weak(x, T, NULL))
    torch.testing.assert_close(guide(strong, PROMPT, None, 2.5, weak=strong)(x, T), strong(x, T, PROMPT))


def test_a_learned_variance_is_kept_from_the_prompted_branch():
    noise = NoiseProcess("linear", "epsilon")
    plain, model, x = Gaussian(noise), Gaussian(noise, extra=True), samples()
    for guidance in (Guidance(3.0, (0.3, 1), 0.5, True, 0.3), Guidance(3.0), Guidance(3.0, zero_init=1.0)):
        for weak in (None, True):
            out = guide(model, PROMPT, NULL, guidance, process=noise, weak=weak and model)(x, T)
            assert out.shape == (3, 4, 2, 2)
            assert torch.equal(out[:, 2:], torch.full_like(x, 1.5))
            expected = guide(plain, PROMPT, NULL, guidance, process=noise, weak=weak and plain)(x, T)
            torch.testing.assert_close(out[:, :2], expected)


# ---- cost, and refusals --------------------------------------------------------------------------------------------


def test_cost_in_passes_and_rows():
    model, weak, x = Gaussian(NoiseProcess()), Gaussian(NoiseProcess()), samples()

    def cost(negative, guidance, t=0.5, **options):
        model.rows.clear(), weak.rows.clear()
        guide(model, PROMPT, negative, guidance, **options)(x, torch.tensor(t, dtype=torch.float64))
        return model.rows + [-n for n in weak.rows]

    everything = Guidance(3.0, rescale=0.5, zero_star=True, zero_init=0.1)
    assert cost(NULL, 1.0) == cost(None, 3.0) == cost(NULL, replace(everything, scale=1.0)) == [3]
    assert cost(NULL, 3.0) == cost(NULL, 0.0) == cost(NULL, everything) == [6]
    assert cost(NULL, Guidance(3.0, interval=(0.6, 0.9))) == [3]
    assert cost(None, 3.0, weak=weak) == cost(NULL, everything, weak=weak) == [3, -3]
    assert cost(None, 1.0, weak=weak) == cost(None, Guidance(3.0, interval=(0.6, 0.9)), weak=weak) == [3]


@pytest.mark.parametrize("process, kind", [("cosine", "epsilon"), ("karras", "v_prediction"), ("flow", "flow")])
def test_the_time_may_be_told_in_the_network_s_units(process, kind):
    process = NoiseProcess(process, kind, shift=2.0)
    model, x = Gaussian(process), samples()
    seen = []

    def told(x, timestep, condition):
        seen.append(timestep)
        return model(x, process.schedule.from_timestep(timestep), condition)

    rule, timesteps = Guidance(4.0, (0.3, 0.6), 0.2, True), process.timestep(T)
    out = guide(told, PROMPT, NULL, rule, process=process, time=process.schedule.from_timestep)(x, timesteps)
    torch.testing.assert_close(out, guide(model, PROMPT, NULL, rule, process=process)(x, T))
    assert torch.equal(seen[0][:3], timesteps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "scale must be a finite number, 0 or more"),
        ({"scale": float("nan")}, "scale must be"),
        ({"interval": (0.6, 0.4)}, "interval must be two times 0 <= first <= last <= 1"),
        ({"interval": (0.1, 1.4)}, "interval must be"),
        ({"rescale": 1.2}, "rescale must be from 0 to 1, got 1.2"),
        ({"zero_init": -0.1}, "zero_init must be from 0 to 1"),
    ],
)
def test_wrong_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**options)
