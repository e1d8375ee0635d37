"""No autoencoder at all: pixel space, and points, through the same code as latents.

A point with d coordinates is an image of one pixel with d channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor

from ldm.models.latents import DeterministicPosterior


@dataclass(frozen=True)
class Encoded:
    latent_dist: DeterministicPosterior


@dataclass(frozen=True)
class Decoded:
    sample: Tensor


class IdentityAutoencoder(ModelMixin, ConfigMixin):
    """Encodes images or points (b, C, H, W) as themselves: one latent is one pixel."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        latent_channels: int = 1,
        block_out_channels: Sequence[int] = (1,),
        scaling_factor: float = 1.0,
    ):
        super().__init__()
        self.register_buffer("unit", torch.ones(1))  # for a device, a dtype and a file of weights

    def encode(self, images: Float[Tensor, "b C H W"]) -> Encoded:
        return Encoded(DeterministicPosterior(images))

    def decode(self, latents: Float[Tensor, "b C H W"], return_dict: bool = True) -> Decoded | tuple[Tensor]:
        return Decoded(latents) if return_dict else (latents,)
