"""Loss weights by noise level have their published forms."""

import itertools

import pytest
import torch
from noise_cases import PREDICTED, inner_times, pair

from ldm.diffusion.loss_weighting import LOSS_WEIGHTS
from ldm.diffusion.process import NoiseProcess, expand_to


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
