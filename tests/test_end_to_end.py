"""The main job as users run it: three trainers through `accelerate launch`, then export, picture, stock diffusers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
STOCK = """
import sys
sys.modules["ldm"] = None  # any import of the package fails
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
pipeline.set_progress_bar_config(disable=True)
latents = torch.randn(2, *eval(sys.argv[3]), generator=torch.Generator().manual_seed(0))
options = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "np"}
images = pipeline([sys.argv[4]] * 2, latents=latents, **options).images
import numpy
numpy.save(sys.argv[2], images)
"""


def run(*command, cwd, **environment) -> str:
    """The output of a command that must succeed."""
    values = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=values, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def train(part, config, cwd, *overrides, processes=1) -> str:
    """`accelerate launch train_<part>.py CONFIG`, as the README says."""
    several = ["--multi_gpu", "--num_processes", processes] if processes > 1 else ["--num_processes", 1]
    launch = [BIN / "accelerate", "launch", "--main_process_port", 0, *several]
    return run(*launch, ROOT / f"train_{part}.py", config, *overrides, cwd=cwd, ACCELERATE_USE_CPU="true")


def losses(run_folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """All three parts of the smoke preset, one process."""
    folder = tmp_path_factory.mktemp("smoke")
    for part in ("clip", "vae", "ldm"):
        train(part, ROOT / "configs" / "smoke.yaml", folder)
    run(BIN / "ldm", "export", "runs/smoke/ldm", "-o", "model", cwd=folder)
    return folder


def test_every_part_learns(smoke):
    for part in ("vae", "ldm"):
        found = losses(smoke / "runs/smoke" / part)
        assert np.mean(found[-2:]) < 0.9 * found[0], (part, found)
    assert all(np.isfinite(losses(smoke / "runs/smoke/clip")))


def test_the_shell_draws_from_the_export(smoke):
    command = ["generate", "horizontal stacked glyph", "-m", "model", "--grid", "2x2", "-o", "out.png"]
    run(BIN / "ldm", *command, cwd=smoke)
    assert np.asarray(Image.open(smoke / "out.png")).std() > 0


def test_stock_diffusers_draws_the_same_picture(smoke):
    import torch

    from ldm.pipeline import load_pipeline

    prompt, pipeline = "horizontal stacked glyph", load_pipeline(smoke / "model", device="cpu")
    shape = pipeline.latent_shape
    run(sys.executable, "-c", STOCK, smoke / "model", smoke / "stock.npy", shape, prompt, cwd=smoke)
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "np"}
    ours = pipeline([prompt] * 2, latents=latents, **options).images
    assert np.abs(ours - np.load(smoke / "stock.npy")).max() <= 2 / 255


def test_a_second_start_resumes_and_finds_nothing_to_do(smoke):
    said = train("vae", ROOT / "configs" / "smoke.yaml", smoke)
    assert "resumed" in said and "step 40 of 40" in said


def test_another_vae_is_refused_by_a_run_that_has_begun(smoke):
    import shutil

    other = smoke / "other"
    shutil.copytree(smoke / "runs/smoke/vae/final/vae", other / "vae")
    from safetensors.numpy import load_file, save_file

    file = other / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["encoder.conv_in.bias"] = tensors["encoder.conv_in.bias"] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    command = [sys.executable, ROOT / "train_ldm.py", ROOT / "configs/smoke.yaml", "--vae", other]
    done = subprocess.run([str(c) for c in command], cwd=smoke, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and "another vae" in done.stderr


@pytest.mark.slow  # tests/test_training.py has two processes on a small task
def test_two_processes_do_it_too(smoke, tmp_path):
    """The same chain with two processes: the first steps' losses are those of one process."""
    short = ["--train.num_steps", 10, "--train.mixed_precision", "no", "--optim.schedule", "constant"]
    cache = ["--data.cache_dir", smoke / "cache"]
    for processes in (1, 2):
        for part in ("clip", "vae", "ldm"):
            place = ["--output-dir", tmp_path / str(processes) / part]
            train(part, ROOT / "configs" / "smoke.yaml", smoke, *short, *cache, *place, processes=processes)
    for part in ("clip", "vae"):
        one, two = (losses(tmp_path / str(processes) / part) for processes in (1, 2))
        np.testing.assert_allclose(two, one, rtol=0.02)
    assert (tmp_path / "2/ldm/final/unet/diffusion_pytorch_model.safetensors").exists()
    said = run(BIN / "ldm", "generate", "-m", tmp_path / "2/ldm", "-o", "two.png", cwd=tmp_path)
    assert "two.png" in said


def photographs(folder: Path, count: int) -> None:
    """Pictures with colour, gradients and noise, each with a .txt caption."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        colour, (h, w) = rng.integers(0, 2), rng.integers(40, 90, 2)
        y, x = np.mgrid[0:h, 0:w]
        disc = ((y - h / 2) ** 2 + (x - w / 2) ** 2 < (min(h, w) / 3) ** 2)[..., None]
        ground = 120 + 60 * np.sin(x / 9 + rng.random() * 6)[..., None] + rng.normal(0, 8, (h, w, 3))
        picture = np.where(disc, [[200, 40, 40], [40, 60, 200]][colour], ground)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.jpg", quality=90)
        (folder / f"{i:03d}.txt").write_text(f"a {['red', 'blue'][colour]} disc on waves")


def test_ones_own_folder_trains_and_draws_through_the_same_commands(tmp_path):
    photographs(tmp_path / "photos", 200)
    own = ["--data.source", tmp_path / "photos", "--data.channels", 3, "--name", "mine", "--train.num_steps", 12]
    for part in ("clip", "vae", "ldm"):
        extra = ["--sampling.prompts", "a red disc on waves"] if part == "ldm" else []
        train(part, ROOT / "configs" / "smoke.yaml", tmp_path, *own, *extra)
    run(BIN / "ldm", "export", "runs/mine/ldm", "-o", "mine", cwd=tmp_path)
    run(BIN / "ldm", "generate", "a red disc on waves", "-m", "mine", "-o", "disc.png", cwd=tmp_path)
    picture = Image.open(tmp_path / "disc.png")
    assert picture.mode == "RGB" and np.asarray(picture).std() > 0


def test_pictures_without_captions_train_unconditionally(tmp_path):
    photographs(tmp_path / "photos", 24)
    for caption in (tmp_path / "photos").glob("*.txt"):
        caption.unlink()
    own = ["--data.source", tmp_path / "photos", "--data.channels", 3, "--name", "plain", "--train.num_steps", 4]
    config = ROOT / "configs" / "smoke.yaml"
    command = [sys.executable, ROOT / "train_clip.py", config, *own]
    done = subprocess.run([str(c) for c in command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "no captions" in done.stderr
    train("vae", config, tmp_path, *own)
    train("ldm", config, tmp_path, *own, "--text.source", "none", "--sampling.prompts", "")
    run(BIN / "ldm", "generate", "-m", "runs/plain/ldm", "-o", "any.png", cwd=tmp_path)
    assert Image.open(tmp_path / "any.png").mode == "RGB"
