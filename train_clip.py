"""Train the text encoder against an image encoder: `accelerate launch train_clip.py configs/glyphs.yaml`."""

from ldm.cli.train_stage import train_stage
from ldm.utils.runtime import run_main

if __name__ == "__main__":
    run_main(lambda: train_stage("clip"))
