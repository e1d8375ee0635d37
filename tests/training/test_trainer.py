"""The loop on a task small enough to know: schedules by formula, resume and world size without a trace."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from forked import world
from torch import nn

from ldm.config.settings import OptimOptions, TrainOptions, VaeSettings
from ldm.training.data_order import generator_for
from ldm.training.distributed import start_world
from ldm.training.trainer import Trainer
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.errors import UserError


@pytest.fixture(autouse=True)
def another_precision_in_one_process():
    """accelerate holds its first precision for the life of a process; a test is a life of its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Line(nn.Module):
    """Fits y = 3 x - 1 under noise and dropout, so that every source of randomness matters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x, noise, progress):
        loss = (self.net(x) + 0.1 * noise - (3 * x - 1)).square().mean()
        return loss, {"loss_copy": loss}


class Picture(nn.Module):
    """A convolution, so that the layout of memory matters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.SiLU(), nn.Conv2d(16, 16, 1), nn.SiLU(), nn.Conv2d(16, 3, 3))

    def forward(self, x, noise, progress):
        return (self.net(x[..., None, None].expand(-1, 3, 8, 8) + noise[..., None, None])).square().mean(), {}


class LineTask:
    fingerprints = {"data": "ten points"}
    num_samples, weights, buckets = 10, None, None
    find_unused_parameters = False

    def __init__(self, module=Line):
        self.module = module()
        self.model = self.module.net
        self.channels_last = module is Picture
        self.reports = 0

    def batch(self, samples, rows):
        x = torch.tensor([[sample.index / 10 + 0.03 * (sample.epoch % 2)] for sample in samples])
        noise = torch.randn(rows.batch_size, 1, generator=generator_for(0, rows.step))  # as in a frozen checkpoint
        return {"x": x, "noise": noise[rows.start : rows.stop]}

    def report(self, folder, label):
        self.reports += 1
        torch.rand(7)  # would disturb training if the loop's randomness were not its own
        with torch.no_grad():
            return {"loss": self.module(torch.ones(4, 1), torch.zeros(4, 1), 0.0)[0].item()}

    def finish(self, folder):
        (folder / "weights.json").write_text(json.dumps([p.sum().item() for p in self.model.parameters()]))


def settings(**train):
    options = {"num_steps": 12, "batch_size": 4, "log_every": 1, "sample_every": 0, "save_every": 4} | train
    options = {"mixed_precision": "no", "report_to": ["none"], "ema_decay": 0.9} | options
    schedule, name = options.pop("schedule", "wsd"), options.pop("optimizer", "adamw")
    optim = OptimOptions(warmup_steps=2, lr=2e-2, name=name, schedule=schedule)
    return VaeSettings(train=TrainOptions(**options), optim=optim)


def fit(run, resume="auto", module=Line, **train):
    trainer = Trainer(LineTask(module), settings(**train), run)
    trainer.fit(resume)
    return trainer


def losses(run):
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


def weights(trainer):
    averaged = trainer.ema.shadow_params if trainer.train.ema_decay else []
    return [p.detach().clone() for p in trainer.task.module.parameters()] + list(averaged)


def assert_equal(first, second):
    for a, b in zip(weights(first), weights(second), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_training_lowers_the_loss_and_leaves_a_whole_final_folder(tmp_path):
    fit(tmp_path, num_steps=60)
    found = losses(tmp_path)
    assert np.mean([found[s] for s in range(51, 61)]) < 0.5 * np.mean([found[s] for s in range(1, 11)])
    assert checkpoint.verify(tmp_path / "final") is None


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 0},
        {"num_workers": 1, "gradient_accumulation_steps": 2},
        {"ema_decay": 0.0},
        {"module": Picture, "mixed_precision": "bf16"},  # channels_last: Adam's moments must lie as the weights do
        {"module": Picture, "mixed_precision": "bf16", "optimizer": "muon"},
    ],
)
def test_resume_equals_the_uninterrupted_run_bit_for_bit(tmp_path, options):
    whole = fit(tmp_path / "whole", **options)
    first = fit(tmp_path / "first", keep_checkpoints=9, **options)
    middle = tmp_path / "first" / "checkpoints" / checkpoint.name(4)  # in the middle of an epoch
    again = fit(tmp_path / "again", resume=str(middle), **options)
    assert_equal(whole, first)
    assert_equal(whole, again)
    assert {s: v for s, v in losses(tmp_path / "whole").items() if s > 4} == losses(tmp_path / "again")


class Denoising(nn.Module):
    """A stock U-Net with dropout, whose blocks can compute their activations anew."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
        self.net = UNet2DConditionModel(
            8, 3, 3, block_out_channels=(8,), layers_per_block=1, cross_attention_dim=8, dropout=0.1, **blocks
        )

    def forward(self, x, noise, progress):
        pictures = (x + noise)[..., None, None].expand(-1, 3, 8, 8)
        text = torch.ones(len(x), 2, 8)
        return self.net(pictures, torch.zeros(len(x)), text).sample.square().mean(), {}


def test_checkpointed_gradients_are_the_same_dropout_included(tmp_path):
    plain = fit(tmp_path / "plain", module=Denoising)
    again = fit(tmp_path / "again", module=Denoising, gradient_checkpointing=True)
    assert again.task.model.is_gradient_checkpointing and not plain.task.model.is_gradient_checkpointing
    assert_equal(plain, again)
    assert losses(tmp_path / "plain") == losses(tmp_path / "again")


def test_auto_takes_the_newest_whole_checkpoint(tmp_path):
    whole = fit(tmp_path)
    for file in (tmp_path / "checkpoints" / checkpoint.name(12)).glob("*.safetensors"):
        file.write_bytes(b"torn")
    assert_equal(whole, fit(tmp_path))
    assert checkpoint.verify(tmp_path / "checkpoints" / checkpoint.name(12)) is None  # written anew, from step 8 on
    assert sorted(losses(tmp_path)) == list(range(1, 13))


@pytest.mark.parametrize("wanted", ["auto", checkpoint.name(12)])
def test_what_a_run_goes_on_from_is_verified_once(wanted, tmp_path, monkeypatch):
    fit(tmp_path)
    newest, read, digest = tmp_path / "checkpoints" / checkpoint.name(12), [], checkpoint.digest
    monkeypatch.setattr(checkpoint, "digest", lambda path: read.append(path) or digest(path))
    fit(tmp_path, resume=wanted if wanted == "auto" else str(newest))
    expected = {path for path in newest.iterdir() if path.name != checkpoint.MANIFEST}
    assert sorted(path for path in read if path.parent == newest) == sorted(expected)


def test_going_back_sets_the_later_checkpoints_aside(tmp_path):
    fit(tmp_path, keep_checkpoints=9)
    folder = tmp_path / "checkpoints"
    fit(tmp_path, resume=str(folder / checkpoint.name(4)), keep_checkpoints=9, num_steps=8)
    assert checkpoint.newest(folder).name == checkpoint.name(8)
    assert sorted(p.name for p in folder.glob("superseded-*")) == [f"superseded-{checkpoint.name(s)}" for s in (8, 12)]


def test_a_finished_run_is_left_alone(tmp_path):
    fit(tmp_path)
    before = (tmp_path / "final" / "manifest.json").stat().st_mtime_ns
    fit(tmp_path)
    assert (tmp_path / "final" / "manifest.json").stat().st_mtime_ns == before


def test_nothing_starts_over_silently_when_no_checkpoint_is_whole(tmp_path):
    fit(tmp_path)
    for file in (tmp_path / "checkpoints").rglob("model.safetensors"):
        file.write_bytes(b"torn")
    with pytest.raises(UserError, match="none valid"):
        fit(tmp_path)


def test_another_seed_or_a_foreign_folder_is_refused(tmp_path):
    fit(tmp_path)
    with pytest.raises(UserError, match="seed was 0, now 5: put it back"):
        Trainer(LineTask(), settings().model_copy(update={"seed": 5}), tmp_path).fit()
    with pytest.raises(UserError):
        fit(tmp_path / "b", resume=str(tmp_path / "final"))


def test_reports_do_not_disturb_training(tmp_path):
    assert_equal(fit(tmp_path / "often", sample_every=1), fit(tmp_path / "never", sample_every=0))


def test_accumulation_sees_the_same_global_batch(tmp_path):
    """Equal up to the order of sums and the dropout masks, so without dropout nearly equal."""

    class NoDropout(LineTask):
        def __init__(self):
            super().__init__()
            self.module.net[1].p = 0.0

    runs = []
    for name, steps in (("one", 1), ("two", 2)):
        trainer = Trainer(NoDropout(), settings(gradient_accumulation_steps=steps), tmp_path / name)
        trainer.fit()
        runs.append(trainer)
    for a, b in zip(weights(runs[0]), weights(runs[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Validated(LineTask):
    """Its validation loss is what the test says for each step; `seen`: the weights that were validated."""

    def __init__(self, losses, copies=None, held_out=True):
        super().__init__()
        self.losses, self.copies, self.held_out, self.seen = losses, copies or {}, held_out, {}

    def has_validation(self):
        return self.held_out

    def validate(self):
        torch.rand(7)
        self.seen[self.trainer.step] = [p.sum().item() for p in self.model.parameters()]
        step = self.trainer.step
        return {"loss": self.losses[step]} | ({"copies": self.copies[step]} if step in self.copies else {})


def validated(run, losses, num_steps=20, resume="auto", copies=None, held_out=True, **train):
    task = Validated(losses, copies, held_out)
    options = {"save_every": 2, "keep_best": True, "patience": 0.2, "schedule": "constant"} | train
    task.trainer = Trainer(task, settings(num_steps=num_steps, **options), run)
    task.trainer.fit(resume)
    return task


VALLEY = {2: 5.0, 4: 3.0, 6: 4.0, 8: 2.5, 10: 2.0, 12: 3.0, 14: 3.5, 16: 9.0, 18: 9.0, 20: 9.0}


def exported(run):
    return json.loads((run / "final" / "weights.json").read_text())


def test_the_best_weights_are_exported_and_training_ends_early(tmp_path, capsys):
    task = validated(tmp_path, VALLEY)
    assert task.trainer.step == 16 and max(losses(tmp_path)) == 16
    assert exported(tmp_path) == task.seen[10] != task.seen[16]
    kept = [path.name for path in checkpoint.saved(tmp_path / "checkpoints")]
    assert kept == [checkpoint.name(step) for step in (10, 14, 16)]  # the best, beside the two newest
    said = capsys.readouterr().out
    assert (
        "ended at step 16 of 20: at step 16 the validation loss had not fallen since step 10: 2 then, 9 later" in said
    )
    assert "those of step 10, with a validation loss of 2 (step 16: 9)" in said
    made = (tmp_path / "final" / "manifest.json").stat().st_mtime_ns
    again = validated(tmp_path, VALLEY)
    assert again.trainer.step == 16 and (tmp_path / "final" / "manifest.json").stat().st_mtime_ns == made


def test_an_early_end_has_its_fall_of_the_rate(tmp_path, capsys):
    valley = {2: 3.0, 4: 2.0} | dict.fromkeys(range(6, 21), 4.0)
    task = validated(tmp_path, valley, schedule="wsd")
    assert task.trainer.step == 15  # the loss had not fallen for long at step 10: 0.7 of 15 steps, rounded up
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [one["lr"] for one in log if "lr" in one]
    assert rates[11] == rates[5] == 2e-2 > rates[12] > rates[13] > rates[14] > 0
    assert exported(tmp_path) == task.seen[4] and "ended at step 15 of 20" in capsys.readouterr().out


def test_without_an_ema_the_weights_themselves_are_taken(tmp_path):
    task = validated(tmp_path, VALLEY, ema_decay=0.0)
    assert exported(tmp_path) == task.seen[10]


def test_a_loss_that_falls_to_the_end_changes_nothing(tmp_path):
    falling = {step: 1 / step for step in range(2, 21, 2)}
    task = validated(tmp_path / "best", falling)
    assert exported(tmp_path / "best") == task.seen[20]
    plain = validated(tmp_path / "plain", falling, keep_best=False)
    assert exported(tmp_path / "plain") == task.seen[20] and not plain.seen
    assert_equal(task.trainer, plain.trainer)


@pytest.mark.parametrize("stop", [7, 10, 12, 13])
def test_an_interrupted_run_chooses_and_ends_alike(stop, tmp_path, monkeypatch):
    whole = validated(tmp_path / "whole", VALLEY)
    step = Trainer._step

    def interrupted(self, *args):
        step(self, *args)
        self.held.pending = 2 if self.step == stop else 0

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        validated(tmp_path / "parts", VALLEY)
    monkeypatch.setattr(Trainer, "_step", step)
    rest = validated(tmp_path / "parts", VALLEY)
    assert rest.trainer.state.validations == whole.trainer.state.validations
    assert_equal(whole.trainer, rest.trainer)
    assert exported(tmp_path / "parts") == exported(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_run_that_copies_ends_and_exports_what_did_not(tmp_path, capsys):
    task = validated(tmp_path, {s: 1 / s for s in range(2, 21, 2)}, copies={2: 0.0, 4: 0.1, 6: 0.6})
    assert task.trainer.step == 6 and exported(tmp_path) == task.seen[4]
    assert "60% of the images that it generates are near copies of training images" in capsys.readouterr().out


def test_more_patience_continues_a_run_that_ended_early(tmp_path):
    validated(tmp_path, VALLEY)
    task = validated(tmp_path, VALLEY, patience=0.0)
    assert task.trainer.step == 20 and sorted(task.seen) == [18, 20]


def test_a_best_checkpoint_that_is_damaged_is_said_and_the_last_exported(tmp_path, capsys):
    task = validated(tmp_path, VALLEY)
    (tmp_path / "checkpoints" / checkpoint.name(10) / "ema.safetensors").write_bytes(b"torn")
    (tmp_path / "final" / "manifest.json").unlink()
    validated(tmp_path, VALLEY)
    assert exported(tmp_path) == task.seen[16]
    assert "the last weights are exported, not those of step 10" in capsys.readouterr().out


def test_without_held_out_items_the_last_weights_are_exported(tmp_path, capsys):
    task = validated(tmp_path, VALLEY, held_out=False)
    assert task.trainer.step == 20 and not task.seen
    assert "no images are held out" in capsys.readouterr().out


def fit_as_one_of(size, run):
    """As a rank of a world of `size`; without dropout, whose masks differ between ranks."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    start_world()
    task = LineTask()
    task.module.net[1].p = 0.0
    trainer = Trainer(task, settings(), run)
    assert trainer.accelerator.num_processes == size, trainer.accelerator.num_processes
    trainer.fit()


def test_two_processes_see_the_losses_of_one(tmp_path):
    for size in (1, 2):
        for child in world(partial(fit_as_one_of, size, tmp_path / f"w{size}"), tmp_path / f"said{size}", size):
            assert child.wait() == 0, child.said()
    one, two = losses(tmp_path / "w1"), losses(tmp_path / "w2")
    assert one.keys() == two.keys() and len(one) == 12
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-4)


def poisoned(run, steps, **train):
    """A trainer whose data are no numbers in some steps."""
    task = LineTask()
    original = task.batch
    task.batch = lambda samples, rows: {
        k: v * (math.nan if rows.step in steps else 1) for k, v in original(samples, rows).items()
    }
    return Trainer(task, settings(save_every=2, **train), run)


def test_a_step_without_finite_gradients_changes_nothing_and_names_its_items(tmp_path, capsys):
    poisoned(tmp_path, {4}, num_steps=5).fit()
    assert "the gradient of step 5 is not finite (training items" in capsys.readouterr().out
    before, after = (checkpoint.load(tmp_path / "checkpoints" / checkpoint.name(s))[0] for s in (4, 5))
    for group in before:
        for name, value in before[group].items():
            torch.testing.assert_close(after[group][name], value, rtol=0, atol=0)
    assert losses(tmp_path)[5] is None and losses(tmp_path)[4] is not None


def test_a_run_that_no_longer_moves_stops_and_spoils_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="not finite .* 3 in a row: lower optim.lr"):
        poisoned(tmp_path, {2, *range(6, 12)}).fit()
    assert checkpoint.newest(tmp_path / "checkpoints").name == checkpoint.name(8)
    groups, _ = checkpoint.load(tmp_path / "checkpoints" / checkpoint.name(8))
    assert all(torch.isfinite(tensor).all() for group in groups.values() for tensor in group.values())


def test_never_refuses_to_bury_an_older_run(tmp_path):
    fit(tmp_path)
    with pytest.raises(UserError, match="already holds checkpoints"):
        fit(tmp_path, resume="never")


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    fit(tmp_path, module=Picture, optimizer="muon")
    with pytest.raises(UserError, match="optim.name was muon, now adamw"):
        fit(tmp_path, module=Picture, num_steps=20)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fit(tmp_path)
    other = LineTask()
    other.module.net[0] = nn.Linear(1, 8)
    other.module.net[3] = nn.Linear(8, 1)
    with pytest.raises(UserError, match="another model"):
        Trainer(other, settings(), tmp_path).fit()
