"""Train the autoencoder: `accelerate launch train_vae.py configs/glyphs.yaml [--optim.lr 2e-4 ...]`."""

from ldm.cli.train_stage import train_stage
from ldm.utils.runtime import run_main

if __name__ == "__main__":
    run_main(lambda: train_stage("vae"))
