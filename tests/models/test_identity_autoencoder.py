"""Without an autoencoder the data are their own latents."""

import torch

from ldm.models.identity_autoencoder import IdentityAutoencoder
from ldm.models.latents import downsampling_factor


def test_encoding_and_decoding_change_nothing(tmp_path):
    vae, x = IdentityAutoencoder(3, 3, 3), torch.randn(2, 3, 4, 4)
    posterior = vae.encode(x).latent_dist
    assert posterior.mean is x and posterior.mode() is x and not posterior.std.any()
    assert vae.decode(x).sample is x and vae.decode(x, return_dict=False) == (x,)
    vae.save_pretrained(tmp_path)
    again = IdentityAutoencoder.from_pretrained(tmp_path)
    assert downsampling_factor(again.config) == 1 and again.config.in_channels == 3 and again.config.scaling_factor == 1
