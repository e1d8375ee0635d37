"""What the training of the f8 starter autoencoder begins with: its own linear encoder, and the decoder of f4.

    python -m scripts.starter.grow models/autoencoders/f4 starter-images -o f8-start

The levels of a decoder become finer one by one, and from a quarter of the resolution on both have the same ones. They
are copied; what comes before them is new, random, and learns with them.
"""

import argparse
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from ldm.config.settings import DataOptions
from ldm.data import build
from ldm.models.autoencoder import load_vae
from ldm.models.linear_autoencoder import FITTED_PIXELS, build_linear, fit_encoder
from ldm.models.saving import save_component
from ldm.training.data_order import image_batches
from ldm.utils.errors import UserError

SIZE = 64
FACTOR, CHANNELS, BLOCKS = 8, 32, 4  # f8; blocks at the coarsest level, one more than f4 has at its own


@torch.no_grad()
def grown(small: AutoencoderTiny) -> AutoencoderTiny:
    """An autoencoder with half as many latents in each direction, whose decoder ends as that of `small` does.

    Its encoder is empty. All layers of `small`'s decoder but the first convolution and its activation are copied.
    """
    large = build_linear(small.config.in_channels, FACTOR, CHANNELS, small.config.decoder_block_out_channels[0], BLOCKS)
    kept = small.decoder.layers[2:]
    for new, old in zip(large.decoder.layers[-len(kept) :], kept, strict=True):
        new.load_state_dict(old.state_dict())
    return large


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", type=Path, help="the f4 autoencoder")
    parser.add_argument("images", type=Path, help="what scripts.starter.images wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    try:
        vae = grown(load_vae(args.small))
        data = build(DataOptions(source=str(args.images), resolution=SIZE, channels=3)).train
    except UserError as error:
        sys.exit(f"error: {error}")
    fit_encoder(vae, image_batches(data, limit=FITTED_PIXELS // SIZE**2))
    save_component(vae, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
