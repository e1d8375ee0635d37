"""Coloured digits as users train and measure them, in latent space and in pixels, too small to draw well."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
CONFIG = """
data: {source: digits, resolution: 16, channels: 3, digits: {limit: 32, copies: 4}}
train: {batch_size: 16, ema_decay: 0.9, log_every: 4, sample_every: 0, save_every: 40, report_to: [none], threads: 1}
optim: {warmup_steps: 4}
clip:
  train: {num_steps: 12}
  model: {vocab_size: 560, context_length: 12, width: 16, layers: 1, heads: 2, embed_dim: 16, vision_width: 16,
          vision_layers: 1, vision_heads: 2}
vae:
  train: {num_steps: 20}
  model: {block_out_channels: [8, 8]}
ldm:
  train: {num_steps: 30}
  model: {block_out_channels: [16, 32], attention_levels: [1], norm_num_groups: 8, heads: 2}
  sampling: {num_inference_steps: 2, prompts: [a red 7], per_prompt: 1}
"""
PIXEL = "extends: tiny.yaml\nldm: {vae: identity, text: {source: runs/tiny/clip}}\n"


def run(*command, cwd) -> str:
    values = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=values, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_digits_train_and_are_measured_in_latents_and_in_pixels(tmp_path):
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    (tmp_path / "pixel.yaml").write_text(PIXEL)
    for part, config in (("clip", "tiny"), ("vae", "tiny"), ("ldm", "tiny"), ("ldm", "pixel")):
        run(sys.executable, ROOT / f"train_{part}.py", f"{config}.yaml", cwd=tmp_path)
    for name in ("tiny", "pixel"):
        lines = (tmp_path / f"runs/{name}/ldm/log.jsonl").read_text().splitlines()
        losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
        assert np.mean(losses[-2:]) < losses[0]
        printed = run(BIN / "ldm", "evaluate", f"runs/{name}/ldm", "-o", name, "--samples", "2", cwd=tmp_path)
        found = json.loads((tmp_path / name / "metrics.json").read_text())
        assert found["sections"]["heldout"]["digit"]["n"] == 20 and "heldout" in printed
        assert found["sections"]["real"]["ink"]["share"] > 0.9
    assert found["sections"]["real_decoded"]["ink"] == found["sections"]["real"]["ink"]  # pixels lose nothing
