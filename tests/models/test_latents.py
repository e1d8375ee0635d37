"""The scale of latents and their posterior, for each autoencoder here."""

import pytest
import torch

from ldm.config.settings import VaeModel
from ldm.models.autoencoder import build_vae
from ldm.models.identity_autoencoder import IdentityAutoencoder
from ldm.models.latents import downsampling_factor, from_model_latents, posterior, to_model_latents

SMALL = {"block_out_channels": [8, 16, 16], "norm_num_groups": 8, "latent_channels": 2}


def test_model_latents_are_shifted_then_scaled_and_decoding_undoes_it():
    config, z = {"scaling_factor": 0.5, "shift_factor": 3.0}, torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(to_model_latents(z, config), (z - 3) * 0.5)
    torch.testing.assert_close(from_model_latents(to_model_latents(z, config), config), z)


@pytest.mark.parametrize("config", [{"scaling_factor": 1.0}, {"scaling_factor": 1.0, "shift_factor": None}])
def test_without_factors_latents_stay_as_they_are(config):
    z = torch.randn(2, 4, 3, 3)
    assert torch.equal(to_model_latents(z, config), z) and torch.equal(from_model_latents(z, config), z)


@pytest.mark.parametrize("kind", ["kl", "vq", "identity"])
@torch.no_grad()
def test_every_autoencoder_has_a_posterior_of_its_latents_size(kind):
    vae = IdentityAutoencoder() if kind == "identity" else build_vae(VaeModel(kind=kind, **SMALL), 1, 16)
    q = posterior(vae.eval(), torch.randn(3, 1, 16, 16))
    side = 16 // downsampling_factor(vae.config)
    assert q.mean.shape == q.std.shape == (3, vae.config.latent_channels, side, side)
    assert side == (16 if kind == "identity" else 4)
    assert torch.equal(q.mode(), q.mean) and (q.std == 0).all() == (kind != "kl")
    torch.testing.assert_close(q.var, q.std**2)


@torch.no_grad()
def test_an_encoder_sees_colours_multiplied_by_alpha_and_pixels_stay_as_they_are():
    vae = build_vae(VaeModel(**SMALL), 4, 16).eval()
    images = torch.rand(3, 4, 16, 16) * 2 - 1
    share = (images[:, 3:] + 1) / 2
    seen = torch.cat([((images[:, :3] + 1) / 2 * share) * 2 - 1, images[:, 3:]], 1)
    torch.testing.assert_close(posterior(vae, images).mean, vae.encode(seen).latent_dist.mean)
    assert torch.equal(posterior(IdentityAutoencoder(4, 4, 4), images).mean, images)


VQ = VaeModel(kind="vq", codebook_size=16, block_out_channels=[8, 16], norm_num_groups=8, latent_channels=3)


def images(count=6, channels=1):
    return torch.rand(count, channels, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def vq(seed=0):
    torch.manual_seed(seed)
    vae = build_vae(VQ, 1, 32)
    with torch.no_grad():  # codes among the vectors, each channel with a mean and spread of its own
        vae.quant_conv.bias += torch.tensor([3.0, -1.0, 0.5])
        found = vae.encode(images()).latents.movedim(1, -1).flatten(0, 2)
        vae.quantize.embedding.weight.copy_(found[torch.randperm(len(found))[:16]])
    return vae


def test_a_vq_posterior_is_a_point():
    q = posterior(vq(), images())
    assert q.std.abs().sum() == 0 and q.var.abs().sum() == 0 and torch.equal(q.mode(), q.mean)
