"""The tiny decoder: it learns to imitate, it is stock, and a pipeline finds it."""

import pytest
import torch
from diffusers import AutoencoderTiny
from tiny_model import tiny_pipeline

from ldm.config.settings import VaeModel
from ldm.models.autoencoder import build_vae, load_vae
from ldm.models.tiny_decoder import build_tiny
from ldm.training.tasks.tiny_decoder import agreement, distil
from ldm.utils.errors import UserError


def teacher(channels=1):
    torch.manual_seed(0)
    model = VaeModel(block_out_channels=[8, 8, 16], norm_num_groups=4, latent_channels=3)
    return build_vae(model, channels, 16).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae():
    return teacher()


def latents(step):
    return torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))


def test_it_has_the_latents_and_pictures_of_its_teacher(vae):
    tiny = build_tiny(vae, width=8)
    assert tiny.decode(latents(0)).sample.shape == vae.decode(latents(0)).sample.shape
    assert tiny.config.scaling_factor == 1 and len(tiny.config.block_out_channels) == 3  # f = 4 to a stock pipeline


@pytest.mark.parametrize("channels", [1, 4])
def test_it_comes_nearer_to_its_teacher_by_training(channels):
    vae = teacher(channels)
    images = torch.rand(4, channels, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    before = agreement(vae, build_tiny(vae, width=16), images)["psnr"]
    after = agreement(vae, distil(vae, latents, steps=60, width=16), images)["psnr"]
    assert after > before + 6


def test_it_is_a_stock_class_that_decodes_the_same_from_its_folder(vae, tmp_path):
    tiny = distil(vae, latents, steps=2, width=8)
    tiny.save_pretrained(tmp_path)
    loaded = AutoencoderTiny.from_pretrained(tmp_path, use_safetensors=True)
    torch.testing.assert_close(loaded.decode(latents(0)).sample, tiny.decode(latents(0)).sample)


def test_it_can_take_the_place_of_the_vae_of_a_stock_pipeline():
    """What diffusers' pipeline asks of a vae to decode: the factor, the scaling factor and a generator."""
    from diffusers import StableDiffusionPipeline

    parts = tiny_pipeline().components
    parts["vae"] = tiny = build_tiny(parts["vae"], width=8)
    stock = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    draw = {"num_inference_steps": 2, "height": 16, "width": 16, "guidance_scale": 1.0}
    latents = stock("", generator=torch.Generator().manual_seed(0), output_type="latent", **draw).images
    picture = stock("", generator=torch.Generator().manual_seed(0), output_type="pt", **draw).images
    torch.testing.assert_close(picture, (tiny.decode(latents).sample / 2 + 0.5).clamp(0, 1))


def test_a_run_without_an_autoencoder_is_named(tmp_path):
    with pytest.raises(UserError, match="no finished VAE"):
        load_vae(tmp_path)
