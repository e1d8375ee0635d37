"""The bound of a latent model, with an autoencoder whose posterior and likelihood are known."""

import math
from types import SimpleNamespace

import torch

from ldm.diffusion.likelihood import (
    log_likelihood,
)
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.variational import gaussian_kl
from ldm.evaluation.latent_likelihood import decoder_std, encode

LOG_2PI = math.log(2 * math.pi)


def gaussian_denoiser(schedule, mean, variance):
    """E[x0 | x_t] for x0 ~ N(mean, variance); both may be tensors that broadcast against x."""

    def denoise(x_t, t):
        alpha, sigma = schedule.scales(t)
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x_t - alpha * mean)

    return denoise


class Linear:
    """Probabilistic PCA as an autoencoder: x = W z + mean + std eps, with orthogonal columns of W, so that the true
    posterior has a diagonal covariance. Pictures are (B, 6, 1, 1), latents (B, 2, 1, 1).
    """

    dtype, config = torch.float64, {"scaling_factor": 1.0}

    def __init__(self, std=0.3, blur=1.0):
        generator = torch.Generator().manual_seed(0)
        basis, _ = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64))
        self.weight = basis * torch.tensor([2.0, 0.7], dtype=torch.float64)
        self.mean, self.std, self.blur = torch.randn(6, generator=generator, dtype=torch.float64), std, blur
        self.precision = self.weight.square().sum(0) + std**2

    def encode(self, x):
        mean = (x.flatten(1) - self.mean) @ self.weight / self.precision
        std = self.blur * self.std / self.precision.sqrt().expand_as(mean)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean[..., None, None], std=std[..., None, None]))

    def decode(self, z):
        return SimpleNamespace(sample=(z.flatten(1) @ self.weight.T + self.mean)[..., None, None])

    def sample(self, n):
        z, eps = torch.randn(n, 2, dtype=torch.float64), torch.randn(n, 6, dtype=torch.float64)
        return (z @ self.weight.T + self.mean + self.std * eps)[..., None, None]

    def log_density(self, x):
        covariance = self.weight @ self.weight.T + self.std**2 * torch.eye(6, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.mean, covariance).log_prob(x.flatten(1))


def test_a_linear_autoencoder_with_the_true_posterior_loses_nothing():
    torch.manual_seed(0)
    vae, schedule = Linear(), SCHEDULES["flow"]()
    x = vae.sample(10)
    found = encode(vae, x, vae.std, discrete=False)
    prior = log_likelihood(gaussian_denoiser(schedule, 0.0, 1.0), found.latents, schedule, 60)
    torch.testing.assert_close(found.log_decoder + prior + found.surprise, vae.log_density(x), atol=1e-3, rtol=0)


def test_another_posterior_loses_its_divergence_from_the_true_one():
    torch.manual_seed(0)
    blur, vae = 1.5, Linear(blur=1.5)
    x = vae.sample(4000)
    found = encode(vae, x, vae.std, discrete=False)
    prior = -0.5 * (found.latents.square() + LOG_2PI).flatten(1).sum(1)
    lost = (vae.log_density(x) - found.log_decoder - prior - found.surprise).mean()
    kl = 2 * gaussian_kl(torch.zeros(()), torch.tensor(2 * math.log(blur)), torch.zeros(()), torch.zeros(()))
    assert abs(lost - kl) < 0.05 and lost > 0


def test_the_scale_of_latents_changes_nothing_but_their_units():
    torch.manual_seed(0)
    vae = Linear()
    x = vae.sample(5)
    eps = torch.randn(5, 2, 1, 1, dtype=torch.float64)
    plain = encode(vae, x, vae.std, discrete=False, noise=lambda like: eps)
    vae.config = {"scaling_factor": 0.5, "shift_factor": 1.0}
    scaled = encode(vae, x, vae.std, discrete=False, noise=lambda like: eps)
    torch.testing.assert_close(scaled.latents, (plain.latents - 1) / 2)
    torch.testing.assert_close(scaled.surprise, plain.surprise + 2 * math.log(0.5))
    torch.testing.assert_close(scaled.log_decoder, plain.log_decoder)
    assert abs(decoder_std(Linear(), vae.sample(4000)) / 0.3 - 1) < 0.2
