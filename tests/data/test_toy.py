"""The toys' exact quantities against integrals and derivatives taken by other means."""

import math
import pickle

import numpy as np
import pytest
import torch

from ldm.config.settings import DataOptions
from ldm.data.toy import TOYS, EightGaussians, Gaussian, SwissRoll, exact_denoiser, splits, toy_named
from ldm.diffusion import gaussian_mixture
from ldm.diffusion.schedules import SCHEDULES
from ldm.utils.errors import UserError

EVERY = sorted(TOYS)
SCALES = [(1.0, 0.0), (0.8, 0.6), (0.3, 0.7), (1.0, 2.0)]


def draw(toy, n=40, alpha=1.0, sigma=0.0, seed=0):
    """Points x_t of a toy, float64 (n, d)."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(alpha * toy.sample(n, rng) + sigma * rng.standard_normal((n, toy.dims)))


def grid(dims, low, high, n):
    """Midpoints of a grid over [low, high]^dims, (n^dims, dims), and the volume of a cell."""
    axis = low + (torch.arange(n, dtype=torch.float64) + 0.5) * (high - low) / n
    return torch.cartesian_prod(*[axis] * dims).reshape(-1, dims), ((high - low) / n) ** dims


def options(**toy):
    return DataOptions.model_validate({"source": "toy", "toy": toy})


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("alpha, sigma", [(1.0, 0.0), (0.6, 0.8)])
def test_densities_integrate_to_one(name, alpha, sigma):
    toy = toy_named(name)
    x, cell = grid(toy.dims, -4.5, 4.5, 220)  # cells of 0.04, a third of the narrowest width
    assert toy.log_density(x, alpha, sigma).exp().sum() * cell == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("alpha, sigma", SCALES)
def test_the_score_is_the_gradient_of_the_log_density(name, alpha, sigma):
    toy = toy_named(name)
    x = draw(toy, 40, alpha, sigma).requires_grad_()
    (gradient,) = torch.autograd.grad(toy.log_density(x, alpha, sigma).sum(), x)
    torch.testing.assert_close(toy.score(x, alpha, sigma), gradient)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("alpha, sigma", SCALES)
def test_tweedie(name, alpha, sigma):
    """alpha E[x0 | x_t] = x_t + sigma^2 grad ln p(x_t)."""
    toy = toy_named(name)
    x = draw(toy, 40, alpha, sigma)
    torch.testing.assert_close(alpha * toy.denoise(x, alpha, sigma), x + sigma**2 * toy.score(x, alpha, sigma))


@pytest.mark.parametrize("name, n", [("gaussian", 2000), ("mixture", 2000), ("8_gaussians", 400), ("swiss_roll", 400)])
def test_posterior_mean_and_covariance_by_bayes_rule_on_a_grid(name, n):
    """The denoiser is the posterior's mean and its Jacobian times sigma^2 / alpha the posterior's covariance."""
    toy, alpha, sigma = toy_named(name), 0.7, 0.5
    x_t = draw(toy, 6, alpha, sigma, seed=1)
    x0, _ = grid(toy.dims, -4.0, 4.0, n)
    prior = toy.log_density(x0)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: toy.denoise(x[None], alpha, sigma)[0]))(x_t)
    for point, mean, slope in zip(x_t, toy.denoise(x_t, alpha, sigma), jacobian, strict=True):
        posterior = (prior - (point - alpha * x0).square().sum(1) / (2 * sigma**2)).softmax(0)
        expected = posterior @ x0
        covariance = (posterior[:, None] * (x0 - expected)).T @ (x0 - expected)
        torch.testing.assert_close(mean, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(sigma**2 / alpha * slope, covariance, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", EVERY)
def test_samples_have_the_mixtures_moments_and_share_of_each_part(name):
    toy, n = toy_named(name), 200_000
    points, labels = toy.sample_labelled(n, np.random.default_rng(0))
    assert points.shape == (n, toy.dims) and points.dtype == np.float64
    assert np.abs(points.mean(0) - toy.mean).max() < 5 / math.sqrt(n)
    assert np.abs(np.cov(points.T, ddof=0) - toy.covariance).max() < 10 / math.sqrt(n)
    if toy.parts:
        assert np.abs(np.bincount(labels) / n - toy.weights).max() < 2.5 / math.sqrt(n)
        guess = toy.responsibilities(torch.from_numpy(points)).argmax(1).numpy()
        assert (guess == labels).mean() > 0.99


@pytest.mark.parametrize("name", ["mixture", "8_gaussians", "swiss_roll"])
def test_axes_are_standardised(name):
    toy = toy_named(name)
    np.testing.assert_allclose(toy.mean, 0, atol=1e-12)
    np.testing.assert_allclose(np.diag(toy.covariance), 1, atol=1e-12)


def test_the_roll_of_the_quadrature_is_the_roll_that_is_drawn():
    """Its noise-free points lie where t cos t and t sin t say, and 512 nodes are as good as 2048."""
    roll, t = SwissRoll(), np.array([1.5, 3.0, 4.5]) * math.pi
    np.testing.assert_allclose(roll.curve((t / math.pi / 1.5 - 1) / 2) * roll.spread + roll.centre, [
        [0, -1.5 * math.pi], [-3 * math.pi, 0], [0, 4.5 * math.pi]
    ], atol=1e-12)  # fmt: skip
    fine, x = SwissRoll(2048), draw(roll, 200)
    for alpha, sigma in SCALES:
        torch.testing.assert_close(roll.log_density(x, alpha, sigma), fine.log_density(x, alpha, sigma))
        torch.testing.assert_close(roll.score(x, alpha, sigma), fine.score(x, alpha, sigma))


def test_the_gaussian_in_closed_form_and_its_fit():
    toy, x = Gaussian(2.0, 0.5), torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    expected = torch.distributions.Normal(0.6 * 2.0, math.sqrt(0.36 * 0.25 + 0.64)).log_prob(x[:, 0])
    torch.testing.assert_close(toy.log_density(x, 0.6, 0.8), expected)
    points = toy.sample(1000, np.random.default_rng(0))
    best = Gaussian.fit(points)

    def likelihood(mean, std):
        return Gaussian(mean, std).log_density(torch.from_numpy(points)).mean().item()

    mean, std = best.mean.item(), math.sqrt(best.covariance.item())
    assert (mean, std) == pytest.approx((points.mean(), points.std()))
    for step in (-0.01, 0.01):
        assert likelihood(mean, std) > max(likelihood(mean + step, std), likelihood(mean, std + step))


def test_a_part_is_the_toy_given_its_label():
    toy, x = EightGaussians(), draw(EightGaussians(), 50)
    whole = torch.stack([toy.part(k).log_density(x, 0.8, 0.6) for k in range(8)]).logsumexp(0) - math.log(8)
    torch.testing.assert_close(toy.log_density(x, 0.8, 0.6), whole)
    south_west = toy.part("south west").mean
    assert south_west[0] == pytest.approx(south_west[1]) and south_west[0] < -0.9
    with pytest.raises(ValueError, match="got 'up'"):
        toy.part("up")
    with pytest.raises(ValueError, match="got 0"):
        SwissRoll().part(0)


@pytest.mark.parametrize("process", sorted(SCHEDULES))
def test_the_exact_denoiser_takes_points_and_one_pixel_images_and_one_time_or_many(process):
    toy, schedule = toy_named("swiss_roll"), SCHEDULES[process]()
    denoise, times = exact_denoiser(toy, schedule), torch.linspace(0.1, 1, 30)
    x = draw(toy, 30).float()
    each = denoise(x, times)
    assert each.dtype == torch.float32
    torch.testing.assert_close(denoise(x[:, :, None, None], times)[..., 0, 0], each)
    one_by_one = torch.cat([denoise(x[i : i + 1], t) for i, t in enumerate(times)])
    torch.testing.assert_close(one_by_one, each)


def test_blocks_of_rows_change_nothing(monkeypatch):
    toy, x = SwissRoll(), draw(SwissRoll(), 30, 0.8, 0.6)
    alpha = torch.linspace(0.1, 1, 30)
    whole = toy.denoise(x, alpha, 0.6), toy.log_density(x, alpha, 0.6)
    monkeypatch.setattr(gaussian_mixture, "ROWS_TIMES_PARTS", 7 * 512)
    torch.testing.assert_close((toy.denoise(x, alpha, 0.6), toy.log_density(x, alpha, 0.6)), whole)
    with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
        toy.score(x[:, :1])


def test_splits_are_fixed_disjoint_draws_with_captions():
    first, again = (splits(options(name="8_gaussians", size=400, captions=True)) for _ in range(2))
    train, validation = first["train"], first["validation"]
    assert (len(train), len(validation), len(first["test"])) == (400, 40, 40)
    assert train.points.dtype == np.float32 and train.points.shape == (400, 2) and train.channels == 2
    assert np.array_equal(train.points, again["train"].points)
    assert not set(map(tuple, train.points)) & set(map(tuple, validation.points))
    assert len({split.fingerprint for split in first.values()}) == 3 and len(set(train.ids)) == 400
    assert np.array_equal(pickle.loads(pickle.dumps(train)).image(3).ravel(), train.points[3])
    for i in range(100):
        compass = train.caption(i, np.random.default_rng(0)).removeprefix("the ").removesuffix(" mode").split()
        expected = {
            word
            for word, towards in {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}.items()
            if train.points[i] @ towards > 0.6
        }
        assert set(compass) == expected
    assert not splits(options(name="8_gaussians", size=5))["train"].has_captions


def test_faults_are_told():
    with pytest.raises(UserError, match="did you mean swiss_roll"):
        splits(options(name="swissroll"))
    with pytest.raises(UserError, match="swiss_roll has no parts to name"):
        splits(options(captions=True))
