"""`ldm sample`: what it writes, that it is what the samplers draw, and what it refuses."""

import argparse
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import tiny_folder

from ldm.cli import sample
from ldm.config.settings import MlpModel
from ldm.diffusion.process import NoiseProcess
from ldm.models.identity_autoencoder import IdentityAutoencoder
from ldm.models.mlp import build_mlp
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.native_sampling import process_and_settings
from ldm.utils.errors import UserError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A finished run of a tiny model."""
    run = tmp_path_factory.mktemp("pictures") / "run"
    tiny_folder(run / "final")
    (run / "config.yaml").write_text("ldm: {sampling: {num_inference_steps: 4, guidance_scale: 2.0, sampler: euler}}\n")
    return run


def call(*argv) -> int:
    parser = argparse.ArgumentParser()
    sample.add_parser(parser.add_subparsers())
    args = parser.parse_args(["sample", *map(str, argv)])
    return args.run(args)


def test_pictures_become_one_array_of_bytes(pictures, tmp_path, capsys):
    out = tmp_path / "new" / "samples.npy"
    assert call(pictures, "-n", 3, "-o", out, "--prompt", "water", "--seed", 5, "--batch-size", 2) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 3 images of 16 x 16 in ")
    found = np.load(out)
    assert found.shape == (3, 16, 16, 1) and found.dtype == np.uint8 and found.std() > 1
    assert [path.name for path in out.parent.iterdir()] == ["samples.npy"]
    call(pictures, "-n", 1, "-o", out, "--prompt", "water", "--seed", 6)
    assert np.abs(np.load(out)[0].astype(int) - found[1]).max() <= 1  # its seed, whatever is drawn beside it


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "ddpm"])
def test_they_are_the_pictures_of_the_pipeline(pictures, tmp_path, sampler):
    """The stock scheduler's flow starts at 0.999 and tells the network whole timesteps: a few grey levels."""
    call(pictures, "-n", 2, "-o", tmp_path / "a.npy", "--prompt", "fire", "--sampler", sampler, "--steps", 8)
    pipeline = load_pipeline(pictures)
    stock = pipeline(["fire"] * 2, seed=0, sampler=sampler, num_inference_steps=8, output_type="np").images
    ours = np.load(tmp_path / "a.npy") / 255
    assert np.abs(ours - stock).mean() < 0.02 and np.abs(ours - stock).max() < 0.15


def test_a_png_is_a_contact_sheet(pictures, tmp_path):
    call(pictures, "-n", 6, "-o", tmp_path / "a.png", "--steps", 1, "--sampler", "heun", "--grid", "logsnr")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (2 * 20, 3 * 20)


def test_an_export_samples_too_and_eta_changes_ddim(pictures, tmp_path):
    arrays = {}
    for eta in (0, 0.5, 1):
        call(pictures / "final", "-o", tmp_path / "a.npy", "-n", 1, "--sampler", "ddim", "--steps", 5, "--eta", eta)
        arrays[eta] = np.load(tmp_path / "a.npy")
    assert not np.array_equal(arrays[0], arrays[0.5]) and not np.array_equal(arrays[0.5], arrays[1])
    call(pictures / "final", "-o", tmp_path / "a.npy", "-n", 1, "--sampler", "ddpm", "--steps", 5)
    assert np.abs(np.load(tmp_path / "a.npy").astype(int) - arrays[1]).max() <= 1


def test_points_are_rows_of_floats(pictures, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pictures, run)
    for part in ("vae", "unet"):
        shutil.rmtree(run / "final" / part)
    torch.manual_seed(0)
    IdentityAutoencoder(2, 2, 2).save_pretrained(run / "final" / "vae")
    build_mlp(MlpModel(width=16, layers=1), 2, 16).save_pretrained(run / "final" / "unet")
    (run / "config.yaml").write_text(
        "data: {source: toy}\n"
        "ldm: {denoiser: mlp, vae: identity, noise: {process: karras, prediction_type: v_prediction}}\n"
    )
    call(run, "-n", 300, "-o", tmp_path / "p.npy", "--steps", 5, "--grid", "karras", "--batch-size", 128)
    points = np.load(tmp_path / "p.npy")
    assert points.shape == (300, 2) and points.dtype == np.float32 and np.isfinite(points).all()
    call(run, "-n", 300, "-o", tmp_path / "p.png", "--steps", 5)
    assert (tmp_path / "p.png").is_file()


def test_faults_are_one_line_and_come_before_the_work(pictures, tmp_path):
    (tmp_path / "folder.npy").mkdir()
    for options, message in (
        (["-o", tmp_path / "a.txt"], "must end in .npy or .png"),
        (["-o", tmp_path / "folder.npy"], "is a folder"),
        (["-o", tmp_path / "a.npy", "-n", 0], "--number must be a whole number, 1 or more, got 0"),
        (["-o", tmp_path / "a.npy", "--steps", 1001], "--steps must be a whole number from 1 to 1000, got 1001"),
        (["-o", tmp_path / "a.npy", "--guidance", -1], "--guidance must be 0 or more"),
        (["-o", tmp_path / "a.npy", "--sampler", "euler", "--eta", 0.5], "only ddim, euler_ancestral have it"),
    ):
        with pytest.raises(UserError, match=message):
            call(pictures, *options)
    with pytest.raises(UserError, match="there is no folder"):
        call(tmp_path / "none", "-o", tmp_path / "a.npy")
    assert not (tmp_path / "a.npy").exists()


def test_a_run_knows_its_process_and_an_export_by_its_scheduler(pictures):
    pipeline = load_pipeline(pictures)
    process, sampling = process_and_settings(str(pictures), pipeline)
    assert isinstance(process, NoiseProcess) and sampling.sampler == "euler"
    other, default = process_and_settings(str(pictures / "final"), pipeline)
    t = torch.linspace(0.1, 0.9, 5)
    torch.testing.assert_close(other.scales(t)[0], process.scales(t)[0])
    assert default.sampler == "dpmpp_2m"
