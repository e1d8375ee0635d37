"""The tiny decoder: it learns to imitate, it is stock, and a pipeline finds it."""

import pytest
import torch
from diffusers import AutoencoderTiny

from ldm.autoencoder import build_vae, load_vae
from ldm.config import VaeModel
from ldm.errors import UserError
from ldm.preview import agreement, build_tiny, distil


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    model = VaeModel(block_out_channels=[8, 8, 16], norm_num_groups=4, latent_channels=3)
    return build_vae(model, 1, 16).eval().requires_grad_(False)


def latents(step):
    return torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))


def test_it_has_the_latents_and_pictures_of_its_teacher(vae):
    tiny = build_tiny(vae, width=8)
    assert tiny.decode(latents(0)).sample.shape == vae.decode(latents(0)).sample.shape
    assert tiny.config.scaling_factor == 1 and len(tiny.config.block_out_channels) == 3  # f = 4 to a stock pipeline


def test_it_comes_nearer_to_its_teacher_by_training(vae):
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    before = agreement(vae, build_tiny(vae, width=16), images)["psnr"]
    after = agreement(vae, distil(vae, latents, steps=60, width=16), images)["psnr"]
    assert after > before + 6


def test_it_is_a_stock_class_that_decodes_the_same_from_its_folder(vae, tmp_path):
    tiny = distil(vae, latents, steps=2, width=8)
    tiny.save_pretrained(tmp_path)
    loaded = AutoencoderTiny.from_pretrained(tmp_path, use_safetensors=True)
    torch.testing.assert_close(loaded.decode(latents(0)).sample, tiny.decode(latents(0)).sample)


def test_a_run_without_an_autoencoder_is_named(tmp_path):
    with pytest.raises(UserError, match="no finished VAE"):
        load_vae(tmp_path)
