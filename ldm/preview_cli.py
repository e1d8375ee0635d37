"""`ldm preview-decoder`: what it is told; the work is done by `ldm.preview`, which needs torch."""

import argparse
from pathlib import Path


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "preview-decoder",
        help="teach a run a tiny decoder for previews",
        description="Teach a tiny decoder to imitate the autoencoder of a finished VAE or LDM run. It is written to "
        "RUN/preview, where Pipeline.preview finds that of an LDM run.",
    )
    parser.add_argument(
        "folder", metavar="run", type=Path, help="folder of a finished train_vae.py or train_ldm.py run"
    )
    parser.add_argument("--steps", type=int, default=400, help="of training (default: 400)")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures per step (default: 16)")
    parser.add_argument("--width", type=int, default=32, help="channels of every convolution (default: 32)")


def run(args: argparse.Namespace) -> None:
    from ldm.preview import teach

    teach(args)
