"""A VQ autoencoder through the whole chain: trained, resumed, cached, drawn with, previewed, refused by export."""

import argparse

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_model import tiny_pipeline

from ldm.config.settings import DataOptions, OptimOptions, TrainOptions, VaeLoss, VaeModel, VaeSettings
from ldm.data import Splits
from ldm.hub.export import export
from ldm.models.autoencoder import build_vae, latent_statistics, load_vae
from ldm.pipelines.loading import load_pipeline
from ldm.training.latent_cache import cached_latents
from ldm.training.tasks import tiny_decoder as preview
from ldm.training.tasks.vae import VaeTask
from ldm.training.trainer import Trainer
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.errors import UserError
from ldm.utils.image_tensors import to_images

MODEL = VaeModel(kind="vq", codebook_size=8, block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4)


class Pictures:
    """Twelve pictures of bars."""

    channels, resolution, has_captions = 1, 16, False
    ids, fingerprint = [str(i) for i in range(12)], "bars"

    def __len__(self):
        return 12

    def image(self, i):
        return np.where(np.arange(16)[:, None, None] % (i + 2) == 0, 0, 255).astype(np.uint8).repeat(16, 1)


@pytest.fixture(autouse=True)
def another_precision_in_one_process():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def fit(run, resume="auto", **model):
    settings = VaeSettings(
        model=MODEL,
        loss=VaeLoss(perceptual=0, revive_after=3),
        train=TrainOptions(
            num_steps=8, batch_size=4, save_every=4, sample_every=0, mixed_precision="no", report_to=["none"]
        ),
        optim=OptimOptions(warmup_steps=2),
    )
    trainer = Trainer(VaeTask(settings, Splits(Pictures(), Pictures())), settings, run)
    trainer.fit(resume)
    return trainer


def everything(trainer):
    return dict(trainer.task.module.named_parameters())


def test_resume_equals_the_uninterrupted_run_and_the_finished_latents_are_white(tmp_path):
    whole = everything(fit(tmp_path / "whole"))
    middle = tmp_path / "whole" / "checkpoints" / checkpoint.name(4)
    again = everything(fit(tmp_path / "again", str(middle)))
    assert {"codebook.usage", "codebook.idle", "vae.quantize.embedding.weight"} <= whole.keys()
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
    mean, std = latent_statistics(
        load_vae(tmp_path / "whole"), iter([to_images(np.stack([*map(Pictures().image, range(12))]))])
    )
    assert mean.abs().max() < 1e-4
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-3, rtol=0)


def test_images_that_the_factor_does_not_divide_are_refused():
    wide = MODEL.model_copy(update={"block_out_channels": [8] * 6})
    with pytest.raises(UserError, match="multiple of the VAE's factor 32"):
        VaeTask(VaeSettings(model=wide), Splits(Pictures(), Pictures()))


@pytest.fixture
def run(tmp_path):
    """A finished LDM run whose autoencoder is a VQModel."""
    torch.manual_seed(0)
    parts = tiny_pipeline().components | {"vae": build_vae(MODEL, 1, 16)}
    for name, part in parts.items():
        part.save_pretrained(tmp_path / "final" / name)
    (tmp_path / "config.yaml").write_text("data: {source: glyphs}\n")
    return tmp_path


def test_the_cache_holds_its_vectors_without_spread(tmp_path):
    latents = cached_latents(build_vae(MODEL, 1, 16).eval(), Pictures(), tmp_path)
    assert latents.mean.shape == (12, 4, 8, 8) and not latents.std.any()


def test_a_run_draws_with_it(run):
    pipeline = load_pipeline(run, device="cpu")
    latents = pipeline("", seed=0, output_type="latent").images
    torch.testing.assert_close(pipeline("", seed=0, output_type="pt").images, pipeline.decode(latents))
    wanted = (pipeline.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pipeline.decode(latents), wanted)


def test_an_export_of_it_is_refused_with_the_way_out(run, tmp_path):
    with pytest.raises(UserError, match=r"cannot use VQModel as its vae.*load_pipeline\(run\)"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_stock_pipeline_cannot_drive_it():
    """Should this fail one day, the refusal to export can go."""
    with pytest.raises(TypeError, match="generator"):
        build_vae(MODEL, 1, 16).decode(torch.zeros(1, 4, 8, 8), return_dict=False, generator=None)


def test_previews_come_from_the_tiny_decoder_once_there_is_one(run, monkeypatch, capsys):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = load_pipeline(run, device="cpu")
    assert torch.equal(plain.preview(latents), plain.decode(latents))
    monkeypatch.setattr(preview, "build", lambda options: Splits(Pictures(), Pictures()))
    preview.teach(argparse.Namespace(folder=run, steps=3, batch_size=2, width=8))
    quick = load_pipeline(run, device="cpu").preview(latents)
    assert quick.shape == (2, 1, 16, 16) and not torch.equal(quick, plain.decode(latents))
    assert "ms an image" in capsys.readouterr().out and checkpoint.verify(run / "preview") is None


def test_settings_of_the_command_are_checked(run):
    with pytest.raises(UserError, match="--steps must be 1 or more, got 0"):
        preview.teach(argparse.Namespace(folder=run, steps=0, batch_size=2, width=8))
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match="no config.yaml"):
        preview.teach(argparse.Namespace(folder=run, steps=1, batch_size=2, width=8))


def test_data_options_reach_the_command(run):
    assert preview._settings(run).data == DataOptions(source="glyphs")
