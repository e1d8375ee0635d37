"""The main job as users run it: three trainers, the last by `accelerate launch`, export, picture, stock diffusers."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import BIN, ROOT, forked, run, train
from PIL import Image

STOCK = """
import sys
ours = [name for name in sys.modules if name.partition(".")[0] == "ldm"]
sys.modules.update(dict.fromkeys(["ldm", *ours]))  # any import of the package fails
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


def losses(run_folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """All three parts of the smoke preset, one process."""
    folder = tmp_path_factory.mktemp("smoke")
    for part in ("clip", "vae", "ldm"):
        train(part, ROOT / "configs" / "smoke.yaml", folder, processes=int(part == "ldm"))
    forked(None, "export", "runs/smoke/ldm", "-o", "model", cwd=folder)
    return folder


def test_every_part_learns(smoke):
    for part in ("vae", "ldm"):
        found = losses(smoke / "runs/smoke" / part)
        assert np.mean(found[-2:]) < 0.9 * found[0], (part, found)
    assert all(np.isfinite(losses(smoke / "runs/smoke/clip")))


def test_the_shell_draws_from_the_export(smoke):
    command = ["generate", "horizontal stacked glyph", "-m", "model", "--grid", "2x2", "-o", "out.png"]
    forked(None, *command, cwd=smoke)
    assert np.asarray(Image.open(smoke / "out.png")).std() > 0


def test_stock_diffusers_draws_the_same_picture(smoke):
    import torch

    from ldm.pipelines.loading import load_pipeline

    prompt, pipeline = "horizontal stacked glyph", load_pipeline(smoke / "model", device="cpu")
    shape = pipeline.latent_shape
    (smoke / "stock.py").write_text(STOCK)
    forked(smoke / "stock.py", smoke / "model", smoke / "stock.npy", shape, prompt, cwd=smoke)
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "np"}
    ours = pipeline([prompt] * 2, latents=latents, **options).images
    assert np.abs(ours - np.load(smoke / "stock.npy")).max() <= 2 / 255


def test_a_second_start_resumes_and_finds_nothing_to_do(smoke):
    said = train("vae", ROOT / "configs" / "smoke.yaml", smoke, processes=0)
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
    said = forked(ROOT / "train_ldm.py", ROOT / "configs/smoke.yaml", "--vae", other, cwd=smoke, code=2)
    assert said.strip().splitlines()[-1].startswith("error: ") and "vae was " in said


@pytest.mark.slow  # tests/training/test_trainer.py has two processes on a small task
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
