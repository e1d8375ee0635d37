"""A weak model: where it comes from, what it costs, and which ones are refused."""

import copy
import shutil
from functools import partial

import pytest
import torch
from tiny_model import COSINE, FLOW, tiny_folder, tiny_pipeline

from ldm.pipelines.autoguidance import load_weak
from ldm.pipelines.loading import load_pipeline
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils import sharded_files
from ldm.utils.errors import UserError


@pytest.fixture(scope="module")
def main():
    pipeline = tiny_pipeline()
    pipeline.load_weak = partial(load_weak, load=load_pipeline)  # as `load_pipeline` gives it to those that it makes
    return pipeline


def other_unet(main, amount=0.2):
    """The main U-Net with noise on its weights."""
    weak, generator = copy.deepcopy(main.unet), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in weak.parameters():
            parameter += amount * parameter.std().nan_to_num() * torch.randn(parameter.shape, generator=generator)
    return weak


def draw(pipeline, *args, **options):
    return pipeline(*args, seed=0, output_type="latent", num_inference_steps=3, **options).images


def test_it_costs_one_pass_of_each_network(main, monkeypatch):
    weak, rows = other_unet(main), []
    for sign, unet in ((1, main.unet), (-1, weak)):
        forward = unet.forward
        monkeypatch.setattr(
            unet, "forward", lambda x, *a, f=forward, s=sign, **k: rows.append(s * len(x)) or f(x, *a, **k)
        )
    draw(main, ["a", "b"], guidance_scale=2.0, weak=weak)
    assert rows == [-2, 2] * 3
    rows.clear()
    draw(main, ["a", "b"], guidance_scale=1.0, weak=weak)
    assert rows == [2] * 3
    rows.clear()
    draw(main, ["a", "b"], guidance_scale=2.0, weak=weak, guidance_interval=(0.5, 0.9))  # steps start at 1, 2/3, 1/3
    assert rows == [2, -2, 2, 2]


def test_a_model_is_not_led_away_from_itself(main):
    torch.testing.assert_close(
        draw(main, "a", guidance_scale=5.0, weak=main), draw(main, "a", guidance_scale=1.0), atol=1e-4, rtol=0
    )


def test_it_guides_without_a_prompt_and_takes_a_negative_one(main):
    weak = other_unet(main)
    plain, guided = draw(main), draw(main, guidance_scale=3.0, weak=weak)
    assert (guided - plain).abs().max() > 1e-3
    away = draw(main, "a", "b", guidance_scale=3.0, weak=main)  # of the main model itself it is the usual guidance
    torch.testing.assert_close(away, draw(main, "a", "b", guidance_scale=3.0), atol=1e-4, rtol=0)


def save_checkpoint(run, unet, text_encoder=None, ema=True):
    """As training does: all that learns as `model`, and its average under the names of the task's model."""
    parts = {"unet": unet} | ({"text_encoder": text_encoder} if text_encoder is not None else {})
    trained = {f"{part}.{name}": value for part, net in parts.items() for name, value in net.named_parameters()}
    groups = {"model": trained if not ema else {name: value * 0 for name, value in trained.items()}}
    if ema:
        groups["ema"] = trained if text_encoder is not None else dict(unet.named_parameters())
    folder = run / "checkpoints" / checkpoint.name(100)
    checkpoint.save(folder, groups, {"step": 100})
    return folder


@pytest.mark.parametrize("ema", [True, False], ids=["averaged", "no average kept"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_checkpoint_gives_its_averaged_weights(tmp_path, main, finished, ema):
    run, weak = tmp_path / "ldm", other_unet(main)
    if finished:
        shutil.copytree(tiny_folder(tmp_path / "model"), run / "final")
    folder = save_checkpoint(run, weak, ema=ema)
    torch.testing.assert_close(draw(main, "a", weak=folder), draw(main, "a", weak=weak), atol=1e-5, rtol=0)
    assert (draw(main, "a") - draw(main, "a", guidance_scale=1.0)).abs().max() > 1e-3  # the main one is as it was


def test_a_checkpoint_in_shards_gives_its_averaged_weights(tmp_path, main):
    weak, folder = other_unet(main), tmp_path / "ldm" / "checkpoints" / checkpoint.name(100)
    own = dict(weak.named_parameters())
    tensors = {f"model/unet.{name}": value * 0 for name, value in own.items()}
    with checkpoint.staged(folder) as stage:
        sharded_files.write(stage, tensors | {f"ema/{name}": value for name, value in own.items()})
        (stage / "state.json").write_text("{}")
    torch.testing.assert_close(draw(main, "a", weak=folder), draw(main, "a", weak=weak), atol=1e-5, rtol=0)


def test_a_text_tower_that_was_trained_along_comes_with_it(tmp_path, main):
    tower = copy.deepcopy(main.text_encoder)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.1
    folder = save_checkpoint(tmp_path / "ldm", other_unet(main), tower)
    loaded = load_weak(folder, main, load_pipeline)
    torch.testing.assert_close(
        loaded.encode_prompt(["a"]),
        tower(main.tokenizer(["a"], padding="max_length", return_tensors="pt").input_ids)[0],
    )
    assert loaded.text_encoder is not main.text_encoder


def test_an_export_or_a_finished_run_is_a_weak_model(tmp_path, main):
    folder = tiny_folder(tmp_path / "model")
    torch.testing.assert_close(draw(main, "a", weak=folder), draw(main, "a", guidance_scale=1.0), atol=1e-4, rtol=0)


def test_models_that_do_not_match_are_refused(tmp_path, main):
    other = tiny_pipeline()
    other.unet.register_to_config(sample_size=4)
    with pytest.raises(ValueError, match=r"has latents \(4, 4, 4\), the main one \(4, 8, 8\)"):
        draw(main, "a", weak=other)
    with pytest.raises(
        ValueError, match="must have the main one's noise process: flow on RectifiedFlow here, v_prediction"
    ):
        draw(main, "a", weak=tiny_pipeline(COSINE))
    folder = tiny_folder(tmp_path / "model", FLOW)
    foreign = load_pipeline(folder)
    with torch.no_grad():
        next(foreign.vae.parameters()).add_(1)
    with pytest.raises(UserError, match="has another autoencoder than the main model"):
        load_weak(folder, foreign, load_pipeline)
    with pytest.raises(UserError, match="there is no folder"):
        draw(main, "a", weak=tmp_path / "nowhere" / "at" / "all")
    checkpoint.save(tmp_path / "x" / "checkpoints" / "step-1", {"model": {"a": torch.ones(1)}}, {})
    with pytest.raises(UserError, match="is of another denoiser"):
        draw(main, "a", weak=tmp_path / "x" / "checkpoints" / "step-1")
