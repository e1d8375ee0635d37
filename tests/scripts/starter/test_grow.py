"""The f8 autoencoder before its training."""

import torch

from ldm.models.linear_autoencoder import build_linear
from scripts.starter.grow import BLOCKS, CHANNELS, grown


def test_the_decoder_ends_as_the_smaller_one_does():
    """Fed with the same features at a quarter of the resolution, both decode to the same image."""
    torch.manual_seed(0)
    small = build_linear(3, 4, 12, 8, BLOCKS - 1)
    large = grown(small)
    assert large.config.latent_channels == CHANNELS
    features = torch.randn(1, 8, 4, 4)
    kept = len(small.decoder.layers) - 2
    with torch.no_grad():
        torch.testing.assert_close(large.decoder.layers[-kept:](features), small.decoder.layers[2:](features))
        assert large.decode(torch.randn(1, CHANNELS, 2, 2)).sample.shape == (1, 3, 16, 16)
