"""Train the denoiser on the latents of a finished VAE: `accelerate launch train_ldm.py configs/glyphs.yaml`."""

from ldm.cli.train_stage import train_stage
from ldm.utils.runtime import run_main

if __name__ == "__main__":
    run_main(lambda: train_stage("ldm"))
