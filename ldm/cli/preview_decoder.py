"""`ldm preview-decoder`: a tiny decoder for previews, trained by `ldm.training.tasks.tiny_decoder`."""

import argparse
from pathlib import Path


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "preview-decoder",
        help="train a tiny decoder for previews",
        description="Train a tiny decoder to imitate the autoencoder of a finished VAE or LDM run. It is written to "
        "RUN/preview, where Pipeline.preview finds that of an LDM run.",
    )
    parser.add_argument(
        "folder", metavar="run", type=Path, help="folder of a finished `ldm train vae` or `ldm train ldm` run"
    )
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: 400)")
    parser.add_argument("--batch-size", type=int, default=16, help="images per step (default: 16)")
    parser.add_argument("--width", type=int, default=32, help="channels of every convolution (default: 32)")


def run(args: argparse.Namespace) -> None:
    from ldm.training.tasks.tiny_decoder import teach

    teach(args)
