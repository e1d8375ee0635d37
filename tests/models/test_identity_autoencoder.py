"""Without an autoencoder the data are their own latents."""

import numpy as np
import torch

from ldm.models.identity_autoencoder import IdentityAutoencoder
from ldm.models.latents import downsampling_factor
from ldm.training.latent_cache import Uncached


class Grey:
    channels, resolution = 1, 8

    def __len__(self):
        return 3

    def image(self, i):
        return np.full((8, 8, 1), 85 * i, np.uint8)


class Dots(Grey):
    channels, resolution = 2, 1

    def image(self, i):
        return np.array([[[2 * i, 2 * i + 1]]], np.float32)


def test_encoding_and_decoding_change_nothing(tmp_path):
    vae, x = IdentityAutoencoder(3, 3, 3), torch.randn(2, 3, 4, 4)
    posterior = vae.encode(x).latent_dist
    assert posterior.mean is x and posterior.mode() is x and not posterior.std.any()
    assert vae.decode(x).sample is x and vae.decode(x, return_dict=False) == (x,)
    vae.save_pretrained(tmp_path)
    again = IdentityAutoencoder.from_pretrained(tmp_path)
    assert downsampling_factor(again.config) == 1 and again.config.in_channels == 3 and again.config.scaling_factor == 1


def test_pictures_come_in_their_range_and_points_as_single_pixels():
    pictures, noise = Uncached(Grey()), torch.randn(2, 1, 8, 8)
    assert pictures.shape == (3, 1, 8, 8) and len(pictures) == 3
    found = pictures.sample([0, 2], noise)
    assert (
        found.shape == noise.shape and found[0].unique() == -1 and torch.isclose(found[1].unique(), torch.tensor(1 / 3))
    )
    points = Uncached(Dots()).sample([2, 0], torch.zeros(2, 2, 1, 1))
    torch.testing.assert_close(points.flatten(1), torch.tensor([[4.0, 5.0], [0.0, 1.0]]))
