"""`ldm cache build`: the caches that a training reads, in parts; and `ldm runs verify`, which reads them again."""

import numpy as np
import pytest
import torch
from own_data import fill

import ldm.training.latent_cache as latents_module
from ldm.cli import main as cli
from ldm.cli.cache import share_from
from ldm.config.settings import VaeModel
from ldm.models.autoencoder import build_vae
from ldm.models.saving import save_component
from ldm.utils.errors import UserError


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "1", "1/0", "-1/4", "a/b", "1/4/2", "1.5/4"])
def test_a_part_is_one_of_n(text):
    with pytest.raises(UserError, match=r"--shard must be I/N .* such as 1/4, got"):
        share_from(text)
    assert share_from("4/4") == (4, 4)


def ldm(*words) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    return stop.value.code or 0


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of twelve images with a finished autoencoder, whose shards hold two images."""
    (tmp_path / "images").mkdir()
    fill(tmp_path / "images", 12)
    torch.manual_seed(0)
    vae = build_vae(VaeModel(block_out_channels=[8, 16], norm_num_groups=8, latent_channels=2), 1, 16).eval()
    save_component(vae, tmp_path / "vae")
    (tmp_path / "mine.yaml").write_text(
        "data: {source: images, resolution: 16, files: {validation_fraction: 0.3}}\nldm: {vae: vae}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latents_module, "SHARD_IMAGES", 2)
    monkeypatch.setattr(latents_module, "encoding_batch_size", lambda *_: 2)
    return tmp_path


def test_parts_are_made_one_after_the_other_and_verified_in_full(project, capsys):
    config = project / "mine.yaml"
    assert ldm("cache", "build", config, "--shard", "1/2", "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert "images: 12, in cache" in out and "latents: job 1/2 is done;" in out and "left to the others" in out
    assert ldm("cache", "build", config, "--shard", "2/2", "--device", "cpu") == 0
    assert "latents: complete" in capsys.readouterr().out
    folders = sorted((project / "cache" / "latents").glob("*"))
    assert len(folders) == 2 and sum(len(np.load(folder / "mean.npy")) for folder in folders) == 12
    run = project / "runs" / "mine" / "ldm"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text((project / "mine.yaml").read_text())
    assert ldm("runs", "verify", run) == 0
    assert capsys.readouterr().out.count(": whole\n") == 4  # the images, their cache, and two of latents
    damaged = folders[0] / "mean.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    (pixels,) = (project / "cache").glob("files-*.npy")
    pixels.write_bytes(pixels.read_bytes()[:-1] + b"!")
    assert ldm("runs", "verify", run) == 1
    out = capsys.readouterr().out
    assert "mean.npy is damaged" in out and f"{pixels.name}: damaged" in out and out.count(": whole") == 2


def test_without_an_autoencoder_it_says_what_to_do(project, capsys):
    (project / "mine.yaml").write_text("data: {source: images, resolution: 16}\n")
    assert ldm("cache", "build", "mine.yaml") == 2
    said = capsys.readouterr()
    assert "images: 12" in said.out and "runs/mine/vae" in said.err.replace("\\", "/")
