"""`ldm train FOLDER` from images to a model, and killed at three random instants."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from commands import BIN, ROOT, run
from PIL import Image
from tiny_trainings import assert_same_run

TINY = {
    "data.resolution": 16,
    "train.num_steps": 12,
    "train.batch_size": 8,
    "train.log_every": 1,
    "clip.model.width": 16,
    "clip.model.heads": 2,
    "clip.model.embed_dim": 16,
    "clip.model.vision_width": 16,
    "clip.model.vision_heads": 2,
    "clip.model.vocab_size": 600,
    "vae.model.block_out_channels": "8 8 8",
    "vae.model.latent_channels": 4,
    "vae.crop": 8,
    "ldm.model.block_out_channels": "8 16",
    "ldm.model.norm_num_groups": 4,
    "ldm.model.heads": 2,
    "ldm.model.attention_levels": 1,
    "ldm.sampling.num_inference_steps": 2,
}
OPTIONS = [word for name, value in TINY.items() for word in (f"--{name}", *str(value).split())]
KILLS = 3


def discs(folder) -> None:
    """50 images of discs, each with two captions."""
    folder.mkdir(parents=True)
    rng, colours = np.random.default_rng(0), {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60)}
    for i in range(50):
        name, (y, x) = list(colours)[i % 3], np.mgrid[:20, :20]
        image = np.full((20, 20, 3), 255, np.uint8)
        image[(x - rng.integers(7, 13)) ** 2 + (y - rng.integers(7, 13)) ** 2 < rng.integers(16, 36)] = colours[name]
        Image.fromarray(image).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"a {name} disc\n{name} circle\n")


def start(cwd, *more) -> subprocess.Popen:
    values = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "ldm", "train", "discs", *OPTIONS, *more]
    with open(cwd / "said", "ab") as said:
        return subprocess.Popen(words, cwd=cwd, env=values, stdout=said, stderr=said)


def finished(cwd) -> str:
    """All that was printed in this folder; the command must have succeeded."""
    code = start(cwd).wait()
    said = (cwd / "said").read_text()
    assert code == 0, said[-4000:]
    return said


@pytest.mark.slow
def test_a_folder_becomes_a_model_and_kills_do_not_change_it(tmp_path):
    undisturbed, other, rng = tmp_path / "0", tmp_path / "1", random.Random(0)
    discs(undisturbed / "discs")
    began = time.monotonic()
    said = finished(undisturbed)
    lasts = time.monotonic() - began
    for words in ("[1/3] text encoder", "[2/3] autoencoder", "[3/3] U-Net", "export: discs-model", "were planned"):
        assert words in said
    for name in ("model_index.json", "metrics.json", "grid.png", "README.md"):
        assert (undisturbed / "discs-model" / name).is_file()
    discs(other / "discs")
    kills = 0
    while kills < KILLS:
        process = start(other)
        time.sleep(rng.uniform(0.1, 0.6) * lasts)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:  # it was quicker
            other = tmp_path / str(kills + 2)
            discs(other / "discs")
    finished(other)
    for part in ("clip", "vae", "ldm"):
        assert_same_run(undisturbed / "runs/discs" / part, other / "runs/discs" / part)
    weights = "unet/diffusion_pytorch_model.safetensors"
    models = [(cwd / "discs-model" / weights).read_bytes() for cwd in (undisturbed, other)]
    assert models[0] == models[1]
    again = finished(other)
    assert again.count("finished before") >= 3


@pytest.mark.slow
def test_two_processes_plan_once_train_all_stages_and_export_once(tmp_path):
    discs(tmp_path / "discs")
    launch = [BIN / "accelerate", "launch", "--main_process_port", 0, "--multi_gpu", "--num_processes", 2]
    words = [*launch, "-m", "ldm.train", "discs", *OPTIONS]
    said = run(*words, cwd=tmp_path, ACCELERATE_USE_CPU="true", PYTHONPATH=str(ROOT))
    for once in (
        "plan: written to discs.yaml",
        "[1/3]",
        "[2/3]",
        "[3/3]",
        "export: discs-model",
        "grid.png: a row for",
    ):
        assert said.count(once) == 1, once
    for part in ("clip", "vae", "ldm"):
        log = [json.loads(line) for line in (tmp_path / "runs/discs" / part / "log.jsonl").read_text().splitlines()]
        assert [row["step"] for row in log if "loss" in row] == list(range(1, 13))
        assert [row["step"] for row in log if "validation/loss" in row] == [3, 6, 9, 12]
    for name in ("model_index.json", "metrics.json", "grid.png"):
        assert (tmp_path / "discs-model" / name).is_file()
    again = run(*words, cwd=tmp_path, ACCELERATE_USE_CPU="true", PYTHONPATH=str(ROOT))
    assert again.count("finished before") == 3 and "export:" not in again


@pytest.mark.slow
def test_processes_that_it_starts_itself_end_with_it_and_go_on(tmp_path):
    discs(tmp_path / "discs")
    first = start(tmp_path, "--processes", "2")
    log, children = tmp_path / "runs/discs/ldm/log.jsonl", []
    while not (log.is_file() and '"step": 4' in log.read_text()):
        children = psutil.Process(first.pid).children()
        assert first.poll() is None, (tmp_path / "said").read_text()[-4000:]
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    assert len(psutil.wait_procs(children, timeout=10)[0]) == 2
    second = start(tmp_path, "--processes", "2")
    assert second.wait() == 0, (tmp_path / "said").read_text()[-4000:]
    said = (tmp_path / "said").read_text()
    assert "2 processes, " in said and "Warning" not in said
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert (tmp_path / "discs-model" / "model_index.json").is_file()
