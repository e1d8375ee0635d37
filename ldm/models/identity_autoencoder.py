"""No autoencoder at all: pixel space, and points, through the same code as latents.

A point of d numbers is a picture of one pixel with d channels.
"""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ldm.models.latents import DeterministicPosterior


@dataclass(frozen=True)
class Encoded:
    latent_dist: DeterministicPosterior


@dataclass(frozen=True)
class Decoded:
    sample: Tensor


class IdentityAutoencoder(ModelMixin, ConfigMixin):
    """Encodes (B, C, H, W) to itself and back; one latent stands for one pixel."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        latent_channels: int = 1,
        block_out_channels: tuple[int, ...] = (1,),
        scaling_factor: float = 1.0,
    ):
        super().__init__()
        self.register_buffer("unit", torch.ones(1))  # so that there is a device, a dtype and a weights file

    def encode(self, images: Tensor) -> Encoded:
        return Encoded(DeterministicPosterior(images))

    def decode(self, latents: Tensor, return_dict: bool = True):
        return Decoded(latents) if return_dict else (latents,)
