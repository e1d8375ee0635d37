"""Latents of any autoencoder, in one place: their posterior, their size, and the scale the denoiser sees them in.

Two spaces: z, as the autoencoder encodes and decodes it, and model latents (z - shift) * scale, about N(0, 1), with
`shift_factor` and `scaling_factor` from the autoencoder's config. Nothing of diffusers is imported here: drawing has to
start quickly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.models.patch_projection import project
from ldm.utils.image_sizes import downsampling_factor
from ldm.utils.image_tensors import premultiplied


@dataclass(frozen=True)
class DeterministicPosterior:
    """A posterior with zero variance, of the encoder of a VQModel or AutoencoderTiny, or of no encoder at all."""

    mean: Float[Tensor, "b c h w"]

    @property
    def std(self) -> Float[Tensor, "b c h w"]:
        return torch.zeros_like(self.mean)

    var = std

    def mode(self) -> Float[Tensor, "b c h w"]:
        return self.mean


def is_vector_quantized(config: Mapping[str, Any]) -> bool:
    """Whether an autoencoder with this config is a VQModel: its decoder sees only vectors of a codebook."""
    return "num_vq_embeddings" in config


def is_tiny(config: Mapping[str, Any]) -> bool:
    """Whether an autoencoder with this config is an AutoencoderTiny: its encoder gives latents, no posterior."""
    return "encoder_block_out_channels" in config


def is_linear(config: Mapping[str, Any]) -> bool:
    """Whether it is an AutoencoderTiny with a linear encoder, as `ldm.models.linear_autoencoder` builds it."""
    return is_tiny(config) and not any(config["num_encoder_blocks"])


def posterior(vae: Any, images: Float[Tensor, "b C H W"]) -> Any:
    """q(z | x) of any autoencoder here, with mean, std and var (b, c, h, w) and mode(); std is 0 but for AutoencoderKL.

    Args:
        images: in [-1, 1], of the autoencoder's device and dtype.
    """
    images = encoder_input(images, vae.config)
    if is_linear(vae.config) and (latents := project(vae, images)) is not None:
        return DeterministicPosterior(latents)
    encoded = vae.encode(images)
    point = is_vector_quantized(vae.config) or is_tiny(vae.config)
    return DeterministicPosterior(encoded.latents) if point else encoded.latent_dist


def encoder_input(images: Float[Tensor, "b C H W"], config: Mapping[str, Any]) -> Float[Tensor, "b C H W"]:
    """What an encoder is shown of images in [-1, 1]: `premultiplied` ones. Pixels that are their own latents are kept.

    Decoders give straight alpha, which is what diffusers makes images of.
    """
    return premultiplied(images) if images.shape[1] == 4 and downsampling_factor(config) > 1 else images


def to_model_latents(z: Float[Tensor, "*shape"], config: Mapping[str, Any]) -> Float[Tensor, "*shape"]:
    """(z - shift) * scale."""
    return (z - shift_factor(config)) * config["scaling_factor"]


def from_model_latents(latents: Float[Tensor, "*shape"], config: Mapping[str, Any]) -> Float[Tensor, "*shape"]:
    """latents / scale + shift, the inverse of `to_model_latents`."""
    return latents / config["scaling_factor"] + shift_factor(config)


def shift_factor(config: Mapping[str, Any]) -> float:
    """The shift, 0 for an autoencoder that has none."""
    return config.get("shift_factor") or 0.0
