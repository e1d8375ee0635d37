"""The third part: its loss in cases with known answers, and tiny runs of every kind of conditioning and space."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from ldm.config.settings import LdmSettings, VaeModel
from ldm.data import Splits
from ldm.diffusion.process import NoiseProcess
from ldm.models import digests
from ldm.models.autoencoder import build_vae
from ldm.models.conditioning import CONDITIONINGS
from ldm.models.text_encoder import null_text_encoder
from ldm.pipelines.loading import load_pipeline
from ldm.training.run_directory import record
from ldm.training.task import BatchSlice, SampleRef
from ldm.training.tasks.denoising import LdmTask, denoising_task
from ldm.training.tasks.denoising_loss import LdmObjective, LossVariance
from ldm.training.trainer import Trainer
from ldm.utils.errors import UserError


@pytest.fixture(autouse=True)
def a_life_of_its_own():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Shades:
    """Flat grey pictures with the captions 'dark' and 'light'."""

    resolution, channels, has_captions, fingerprint = 16, 1, True, "shades"

    def __init__(self, count):
        self.ids = [str(i) for i in range(count)]

    def __len__(self):
        return len(self.ids)

    def image(self, i):
        return np.full((16, 16, 1), 255 * (i % 2), np.uint8)

    def caption(self, i, rng):
        return ("dark", "light")[i % 2]


class Pairs(Shades):
    """Two heaps of points, left and right."""

    resolution, channels = 1, 2

    def image(self, i):
        return np.array([[[(-2.0, 2.0)[i % 2], 0.0]]], np.float32)

    def caption(self, i, rng):
        return ("left", "right")[i % 2]


class Answer(nn.Module):
    """A network that answers with what it is asked to hold."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = prediction

    def forward(self, x, timestep, states):
        return type("Output", (), {"sample": self.prediction})


def objective(prediction, **options) -> LdmObjective:
    return LdmObjective(Answer(prediction), null_text_encoder()[0], NoiseProcess(**options))


def loss_of(module, x0, eps, t):
    return module(x0, eps, t, torch.zeros(1, 8, dtype=torch.long), 0.0)


def test_the_right_answer_costs_nothing_and_an_error_its_square():
    x0, eps = torch.randn(2, 8, 4, 2, 2).unbind()
    t = torch.full((8,), 0.3)
    assert loss_of(objective(eps - x0), x0, eps, t)[0] == 0
    torch.testing.assert_close(loss_of(objective(eps - x0 + 0.5), x0, eps, t)[0], torch.tensor(0.25))


def test_the_learned_weight_settles_at_the_logarithm_of_the_loss():
    """The minimum of e / exp(u) + u is at u = ln e, where it is 1 + ln e."""
    x0, eps = torch.randn(2, 8, 4, 2, 2).unbind()
    t = torch.full((8,), 0.3)
    module = objective(eps - x0 + 0.5, weight="learned")
    optimizer = torch.optim.Adam(module.uncertainty.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        loss, metrics = loss_of(module, x0, eps, t)
        loss.backward()
        optimizer.step()
    assert metrics["error"].item() == pytest.approx(0.25)
    assert loss.item() == pytest.approx(1 + np.log(0.25), abs=1e-3)


def test_the_uncertainty_is_zero_at_first_and_finite_everywhere():
    found = LossVariance()(torch.tensor([-torch.inf, 0.0, torch.inf]))
    assert not found.any() and torch.isfinite(found).all()


def test_the_hybrid_loss_adds_the_bound_and_moves_the_variance_alone():
    generator = torch.Generator().manual_seed(0)
    x0, eps, wrong = torch.randn(3, 16, 2, 1, 1, generator=generator).unbind()
    share = torch.zeros(16, 2, 1, 1, requires_grad=True)
    options = {"process": "linear", "prediction_type": "epsilon", "learned_variance": True}
    t = NoiseProcess(**options).draw_times(16, generator)
    loss, metrics = loss_of(objective(torch.cat([wrong, share], 1), **options), x0, eps, t)
    simple = (wrong - eps).square().mean()
    torch.testing.assert_close(loss, simple + metrics["bound"])  # .001 times 1000 steps of it
    loss.backward()
    assert share.grad.abs().sum() > 0


def settings(tmp_path, **changes) -> LdmSettings:
    values = {
        "output_dir": tmp_path / "run",
        "data": {"resolution": 16, "cache_dir": tmp_path / "cache"},
        "train": {"num_steps": 3, "batch_size": 4, "report_to": [], "mixed_precision": "no", "sample_every": 0},
        "vae": "identity",
        "text": {"source": "new", "width": 16},
        "model": {"block_out_channels": [8, 16], "norm_num_groups": 4, "attention_levels": [1], "heads": 2},
        "mlp": {"width": 16, "layers": 1},
        "sampling": {"num_inference_steps": 3, "per_prompt": 1},
    }
    return LdmSettings(**{**values, **changes})


def fit(chosen: LdmSettings, kind=Shades) -> LdmTask:
    torch.manual_seed(0)
    data = Splits(kind(12), kind(4))
    task = denoising_task(chosen, data, chosen.output_dir, torch.device("cpu"))
    record(chosen.output_dir, chosen)
    Trainer(task, chosen, chosen.output_dir).fit()
    return task


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_pixel_space_trains_and_draws_with_every_conditioning(conditioning, tmp_path):
    chosen = settings(tmp_path)
    fit(chosen.model_copy(update={"model": chosen.model.model_copy(update={"conditioning": conditioning})}))
    pipeline = load_pipeline(tmp_path / "run")
    dark, light = (np.asarray(pipeline(word, seed=1).images[0], np.int16) for word in ("dark", "light"))
    assert dark.shape == (16, 16) and (dark != light).any()


def test_a_new_tower_learns_and_belongs_to_the_run(tmp_path):
    task = fit(settings(tmp_path))
    first = CLIPTextModel.from_pretrained(tmp_path / "run/final/text_encoder")
    trained = dict(task.module.text_encoder.named_parameters())
    assert all(p.requires_grad for p in trained.values())
    torch.manual_seed(0)
    fresh = denoising_task(settings(tmp_path), Splits(Shades(12), Shades(4)), tmp_path / "run", torch.device("cpu"))
    moved = [
        not torch.equal(p, q) for p, q in zip(fresh.module.text_encoder.parameters(), first.parameters(), strict=True)
    ]
    assert any(moved)


@pytest.mark.parametrize("process", ["flow", "linear"])
def test_points_train_and_are_drawn(process, tmp_path):
    changes = {}
    if process == "linear":  # which only DDPM's sampler has a use for
        changes["noise"] = {"process": "linear", "prediction_type": "epsilon", "learned_variance": True}
        changes["sampling"] = {"num_inference_steps": 3, "sampler": "ddpm", "time_grid": "leading"}
    fit(settings(tmp_path, denoiser="mlp", **changes), Pairs)
    found = load_pipeline(tmp_path / "run")("left", num_images_per_prompt=5, seed=0, output_type="latent").images
    assert found.shape == (5, 2, 1, 1) and torch.isfinite(found).all()


@pytest.mark.parametrize(
    "noise",
    [
        {"process": "karras", "prediction_type": "v_prediction", "timesteps": "log_normal"},
        {"process": "sigmoid", "prediction_type": "sample", "zero_terminal_snr": True, "weight": "learned"},
    ],
    ids=str,
)
def test_other_processes_train_and_draw(noise, tmp_path):
    fit(settings(tmp_path, noise=noise))
    picture = load_pipeline(tmp_path / "run")("dark", seed=0, output_type="np").images
    assert np.isfinite(picture).all()


def test_a_start_hashes_the_vae_once(tmp_path, monkeypatch):
    """However many splits look for their latents, whether these are there or not."""
    vae = build_vae(VaeModel(block_out_channels=[8, 16], norm_num_groups=8, latent_channels=2), 1, 16)
    vae.save_pretrained(tmp_path / "vae")
    hashed, digest = [], digests.weights_digest
    monkeypatch.setattr(digests, "weights_digest", lambda module: hashed.append(type(module)) or digest(module))
    for starts in (1, 2):
        task = denoising_task(
            settings(tmp_path, vae=str(tmp_path / "vae")), Splits(Shades(12), Shades(4)), tmp_path, torch.device("cpu")
        )
        assert hashed.count(type(vae)) == starts and task.fingerprints["vae"] == digests.network_digest(vae)
        hashed.pop()


def test_points_and_pictures_are_told_apart(tmp_path):
    for kind, changes in ((Pairs, {}), (Shades, {"denoiser": "mlp"})):
        with pytest.raises(UserError, match="denoiser: mlp and vae: identity"):
            fit(settings(tmp_path, **changes), kind)


def test_a_new_tower_needs_captions(tmp_path):
    class Silent(Shades):
        has_captions = False

    with pytest.raises(UserError, match="text.source: none"):
        fit(settings(tmp_path), Silent)


def aligned(tmp_path, **changes) -> LdmSettings:
    """A run beside that of an untrained CLIP."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 16, "patch_size": 4, "num_channels": 1}
    clip = CLIPModel(CLIPConfig(text_config={**small, "vocab_size": 8}, vision_config=vision))
    clip.save_pretrained(tmp_path / "clip" / "final" / "clip")
    return settings(tmp_path, alignment={"weight": 1.0, "until": 0.5}, **changes)


def test_alignment_is_the_cosine_distance_of_the_middle_and_the_towers_patches():
    from types import SimpleNamespace

    from transformers.modeling_outputs import BaseModelOutputWithPooling

    from ldm.models.representation_alignment import Alignment

    class Tower(nn.Module):
        config = SimpleNamespace(hidden_size=3, image_size=4, patch_size=2)

        def forward(self, pixel_values, interpolate_pos_encoding):
            assert not interpolate_pos_encoding
            return BaseModelOutputWithPooling(torch.cat([torch.zeros(2, 1, 3), self.patches], 1))

    class UNet(nn.Module):
        config = SimpleNamespace(block_out_channels=[5])

        def __init__(self):
            super().__init__()
            self.mid_block = nn.Conv2d(5, 5, 1)

    tower, unet = Tower(), UNet()
    found = Alignment(tower, unet, 0.5).train()
    generator = torch.Generator().manual_seed(0)
    middle = unet.mid_block(torch.randn(2, 5, 2, 2, generator=generator))
    said = found.network(middle).flatten(2).transpose(1, 2).detach()
    tower.patches = torch.stack([2 * said[0], -said[1]])  # the same direction, and the opposite
    torch.testing.assert_close(found(torch.zeros(2, 1, 4, 4)), torch.tensor([0.0, 2.0]))
    tower.patches = torch.randn(2, 4, 3, generator=generator)
    found(torch.zeros(2, 1, 4, 4)).sum().backward()
    assert unet.mid_block.weight.grad.abs().sum() > 0


def test_images_of_any_shape_are_aligned_patch_by_patch(tmp_path):
    from ldm.models.representation_alignment import Alignment, load_tower

    aligned(tmp_path)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    small = {"block_out_channels": (4, 8), "norm_num_groups": 2, "cross_attention_dim": 8}
    unet = UNet2DConditionModel(in_channels=1, out_channels=1, **blocks, **small).train()
    found = Alignment(load_tower(tmp_path / "clip", (8, 32), 1), unet, 0.5).train()
    images = torch.rand(2, 1, 8, 32)
    unet(images, 0.0, torch.zeros(2, 1, 8))
    assert found(images).shape == (2,) and found(images).isfinite().all()


def test_a_run_is_aligned_for_a_while_and_resumes_bit_for_bit(tmp_path):
    chosen = aligned(tmp_path)
    train = chosen.train.model_copy(update={"num_steps": 6, "save_every": 2, "log_every": 1, "keep_checkpoints": 9})
    chosen = chosen.model_copy(update={"train": train})
    task = fit(chosen)
    logged = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "alignment" in row] == [1, 2, 3]
    AcceleratorState._reset_state(reset_partial_state=True)
    data = Splits(Shades(12), Shades(4))
    again = denoising_task(chosen, data, tmp_path / "run", torch.device("cpu"))
    Trainer(again, chosen, tmp_path / "run").fit(str(tmp_path / "run/checkpoints/step-00000002"))
    for p, q in zip(task.module.parameters(), again.module.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
    assert not any("alignment" in name for name, _ in again.model.named_parameters())  # nothing of it is exported


def test_alignment_that_cannot_be_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no finished CLIP run in .*clip"):
        fit(settings(tmp_path, alignment={"weight": 1.0}))
    chosen = aligned(tmp_path)
    with pytest.raises(UserError, match="images of 1 x 16, and the data have 1 x 32"):
        from ldm.models.representation_alignment import load_tower

        load_tower(tmp_path / "clip", 32, 1)
    with pytest.raises(UserError, match="mid_block: true"):
        fit(chosen.model_copy(update={"model": chosen.model.model_copy(update={"mid_block": False})}))


class Greys(Shades):
    """The mixture of the tests: middle grey, called 'grey'."""

    fingerprint = "greys"

    def image(self, i):
        return np.full((16, 16, 1), 128, np.uint8)

    def caption(self, i, rng):
        return "grey"


def mixed_task(tmp_path, share, above) -> LdmTask:
    chosen = settings(
        tmp_path,
        data={"resolution": 16, "cache_dir": tmp_path / "cache", "mixture": {"share": share, "above": above}},
        caption_dropout=0.0,
    )
    return denoising_task(
        chosen, Splits(Shades(12), Shades(4), mixture=Greys(6)), chosen.output_dir, torch.device("cpu")
    )


@pytest.mark.parametrize("share, above", [(1.0, 0.4), (0.5, 0.0), (0.0, 0.0)])
def test_the_mixture_stands_at_noisy_times_with_its_own_captions(share, above, tmp_path):
    task = mixed_task(tmp_path, share, above)
    samples = [SampleRef(i % 12, 0) for i in range(256)]
    batch = task.batch(samples, BatchSlice(0, 0, 256, 256))
    grey = batch["latents"].flatten(1).abs().amax(1) < 0.1
    called = (batch["input_ids"] == task.token_rows(["grey"])).all(1)
    assert torch.equal(grey, called)
    assert not grey[batch["times"] <= above].any()
    assert grey[batch["times"] > above].float().mean() == pytest.approx(share, abs=0.1)
    parts = [task.batch(samples[k : k + 64], BatchSlice(0, k, k + 64, 256)) for k in range(0, 256, 64)]
    for name, value in batch.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), value), name


def test_a_mixture_is_part_of_what_a_run_is_trained_on(tmp_path):
    assert mixed_task(tmp_path, 0.5, 0.4).fingerprints["mixture"] == "greys"
