"""A tiny decoder for previews: convolutions, ReLU and upsampling alone, as diffusers' `AutoencoderTiny`."""

from typing import Any

from diffusers import AutoencoderTiny

from ldm.models.latents import downsampling_factor


def build_tiny(vae: Any, width: int = 32, blocks: int = 1) -> AutoencoderTiny:
    """An AutoencoderTiny with the latents, images and factor of `vae`; `blocks` residual blocks per level."""
    config, levels = vae.config, downsampling_factor(vae.config).bit_length()
    return AutoencoderTiny(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        latent_channels=config.latent_channels,
        encoder_block_out_channels=(8,) * levels,
        num_encoder_blocks=(0,) * levels,
        decoder_block_out_channels=(width,) * levels,
        num_decoder_blocks=(blocks,) * levels,
        scaling_factor=1.0,
    )
