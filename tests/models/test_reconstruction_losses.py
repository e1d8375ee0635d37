"""The autoencoder's losses by hand: edges, perceptual distance, KL, hinge."""

import math

import pytest
import torch

from ldm.models.reconstruction_losses import (
    RandomFeatures,
    edge_loss,
    gaussian_kl,
    hinge_discriminator_loss,
)


def images(count=6, channels=1):
    return torch.rand(count, channels, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_kl_of_a_gaussian_is_its_closed_form():
    mean, logvar = torch.full((2, 3), 0.5), torch.full((2, 3), math.log(4.0))
    assert math.isclose(gaussian_kl(mean, logvar).item(), 0.5 * (0.25 + 4 - 1 - math.log(4)), rel_tol=1e-6)
    assert gaussian_kl(torch.zeros(2), torch.zeros(2)).item() == 0


def test_edge_loss_sees_edges_and_not_levels():
    x = images()
    assert edge_loss(x, x + 0.3).item() == pytest.approx(0, abs=1e-6)
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    assert edge_loss(ramp, torch.zeros_like(ramp)).item() == pytest.approx(1.0)


def test_perceptual_distance_is_zero_for_equals_grows_with_blur_and_has_gradients():
    distance, x = RandomFeatures(1), images()
    assert distance(x, x).item() == 0
    blurred = [torch.nn.functional.avg_pool2d(x, k, 1, k // 2) for k in (3, 5, 7)]
    values = [distance(x, y).item() for y in blurred]
    assert 0 < values[0] < values[1] < values[2]
    y = blurred[0].clone().requires_grad_()
    distance(x, y).backward()
    assert y.grad.abs().sum() > 0
    torch.testing.assert_close(RandomFeatures(1).kernel_1, distance.kernel_1)  # the same in every run


def test_hinge_loss_by_hand():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.5])
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx((0.5 + 0.75) / 2)
