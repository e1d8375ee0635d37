"""Latents that are encoded when a batch needs them, instead of being read from a cache."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data import ImageTextData
from ldm.data.buckets import buckets_of, sizes_of
from ldm.models.autoencoder import Autoencoder
from ldm.models.latents import downsampling_factor, posterior, to_model_latents
from ldm.utils.image_tensors import to_images


class LiveLatents:
    """The latents of a data set's images, as `ldm.training.latent_cache.Latents` gives them, but not rounded."""

    def __init__(self, vae: Autoencoder, data: ImageTextData):
        self.vae, self.data, self._sizes, self._buckets = vae, data, sizes_of(data), buckets_of(data)
        self._channels, self._factor = vae.config.latent_channels, downsampling_factor(vae.config)

    def __getstate__(self) -> dict[str, Any]:
        """For the data loader's workers, which read images and have no network."""
        return self.__dict__ | {"vae": None}

    def __len__(self) -> int:
        return len(self.data)

    def shape_of(self, i: int) -> tuple[int, ...]:
        """(c, h, w) of an item."""
        sides = self._sizes[0 if self._buckets is None else self._buckets[i]]
        return self._channels, *(side // self._factor for side in sides)

    def images(self, indices: list[int]) -> Tensor:
        """Float32 (B, C, H, W) in [-1, 1]."""
        return to_images(np.stack([self.data.image(i) for i in indices]))

    def sample(self, indices: list[int], noise: Tensor) -> Tensor:
        """mean + std * noise of these items: float32 (B, c, h, w) for standard normal noise of that shape."""
        return encoded(self.vae, self.images(indices).to(self.vae.device), noise.to(self.vae.device)).cpu()


@torch.no_grad()
def encoded(vae: Autoencoder, images: Tensor, noise: Tensor) -> Tensor:
    """A draw of the posterior of each image, float32 (B, c, h, w): mean + std * noise.

    In the VAE's own precision, whatever the training's: in fp16 many overflow.
    """
    with torch.autocast(images.device.type, enabled=False):
        found = posterior(vae, images.to(vae.dtype))
        mean, std = to_model_latents(found.mean, vae.config), found.std * vae.config.scaling_factor
        return mean.float() + std.float() * noise
