"""What the network predicts: every prediction gives every other, and those of diffusers."""

import itertools

import pytest
import torch
from noise_cases import NAMES, pair, theirs

from ldm.diffusion.parameterization import PREDICTIONS, convert
from ldm.diffusion.process import NoiseProcess, expand_to
from ldm.diffusion.schedules import SCHEDULES


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
