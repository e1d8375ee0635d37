"""The linear encoder is exact and the best of its size; the pipeline's stock class holds it."""

import json

import pytest
import torch
from torch.nn import functional as F

from ldm.config.settings import VaeModel
from ldm.models.autoencoder import build_vae, load_vae
from ldm.models.latents import downsampling_factor, posterior, to_model_latents
from ldm.models.linear_autoencoder import (
    build_linear,
    fit_encoder,
    pca_psnr,
    principal_patches,
)
from ldm.models.patch_projection import hold_projection, project
from ldm.models.saving import save_component


def smooth_images(count=40, channels=3, side=32):
    noise = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))
    walks = noise.cumsum(-1).cumsum(-2)
    return walks / walks.abs().max()


def patches(images, factor):
    return F.unfold(images, factor, stride=factor).permute(0, 2, 1).double()


@pytest.mark.parametrize(("channels", "factor", "latents"), [(3, 4, 8), (1, 8, 8), (3, 2, 4), (3, 8, 5)])
def test_the_encoder_holds_any_projection_exactly(channels, factor, latents):
    vae, images = build_linear(channels, factor, latents, 8, 1), smooth_images(4, channels)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(latents, channels * factor**2, generator=generator, dtype=torch.float64)
    biases = torch.randn(latents, generator=generator, dtype=torch.float64)
    hold_projection(vae, weights, biases)
    expected = (patches(images, factor) @ weights.T + biases).permute(0, 2, 1)
    for encoded in (vae.encode(images).latents, project(vae, images), posterior(vae, images).mean):
        torch.testing.assert_close(encoded.double().flatten(2), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("where", ["first", "gathering", "last", "bias"])
def test_an_encoder_that_is_no_projection_encodes_by_itself(where):
    vae, images = build_linear(1, 4, 4, 8, 1), smooth_images(2, 1)
    assert project(vae, images) is None  # not fitted yet
    fit_encoder(vae, [images])
    assert project(vae, images) is not None
    convolutions = [layer for layer in vae.encoder.layers if isinstance(layer, torch.nn.Conv2d)]
    changed = {
        "first": convolutions[0],
        "gathering": convolutions[1],
        "last": convolutions[-1],
        "bias": convolutions[0],
    }
    part = changed[where].bias if where == "bias" else changed[where].weight[:, :, 0, 0]
    part += 0.1
    vae.load_state_dict(vae.state_dict())  # weights are replaced all at once
    assert project(vae, images) is None
    torch.testing.assert_close(posterior(vae, images).mean, vae.encode(images).latents, rtol=0, atol=0)


def test_latents_are_half_white():
    vae, images = build_linear(3, 4, 8, 8, 1), smooth_images()
    fit_encoder(vae, [images])
    latents = to_model_latents(posterior(vae, images).mean, vae.config).double().transpose(0, 1).flatten(1)
    variances, *_ = principal_patches([images], 4, 8)
    torch.testing.assert_close(latents.mean(1), torch.zeros(8, dtype=torch.float64), atol=1e-5, rtol=0)
    covariance = latents @ latents.T / latents.shape[1]
    expected = variances.sqrt() / variances.sqrt().mean()  # of deviation s: s ** 0.5, so variance s
    torch.testing.assert_close(covariance, expected.diag(), atol=1e-4, rtol=1e-3)


def test_components_are_the_best_linear_code():
    images = smooth_images()
    variances, directions, mean = principal_patches([images], 4, 48)
    assert variances.diff().max() <= 0
    centred = patches(images, 4).flatten(0, 1) - mean
    lost = (centred - centred @ directions[:8].T @ directions[:8]).square().sum(1).mean()
    torch.testing.assert_close(lost, variances[8:].sum(), rtol=1e-6, atol=1e-9)
    others, _ = torch.linalg.qr(torch.randn(48, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    assert lost < (centred - centred @ others @ others.T).square().sum(1).mean()


def test_the_floor_of_flat_patches_and_of_all_components():
    flat = smooth_images(6, 1, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert pca_psnr(flat, flat, 4, 1) > 90  # one number tells a patch of one grey level
    images = smooth_images()
    assert pca_psnr(images, images, 4, 48) > 90
    assert pca_psnr(images, images, 4, 4) < pca_psnr(images, images, 4, 8)
    with pytest.raises(ValueError, match="a patch of 3 x 4 x 4 has 48 numbers, not 49"):
        principal_patches([images], 4, 49)


def test_it_is_built_saved_and_loaded_as_any_other(tmp_path, caplog):
    model = VaeModel(kind="linear", block_out_channels=[8, 8, 8], layers_per_block=2, latent_channels=6)
    vae = build_vae(model, 3, 32)
    fit_encoder(vae, [smooth_images(8)])
    save_component(vae, tmp_path / "vae")
    with caplog.at_level("WARNING"):
        loaded, images = load_vae(tmp_path), smooth_images(2)
    assert not caplog.records and downsampling_factor(json.loads((tmp_path / "vae/config.json").read_text())) == 4
    assert type(loaded).__name__ == "AutoencoderTiny" and loaded.config.num_decoder_blocks == [2, 1, 0]
    torch.testing.assert_close(posterior(loaded, images).mean, posterior(vae, images).mean)
    assert loaded.decode(posterior(loaded, images).mean).sample.shape == images.shape
    with pytest.raises(ValueError, match="all block_out_channels must be equal"):
        VaeModel(kind="linear", block_out_channels=[8, 16])
