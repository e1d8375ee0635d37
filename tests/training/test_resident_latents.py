"""Latents on the device give the batches that the cache on disk gives, bit for bit."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from forked import Child
from pretend_cuda import install, running
from tiny_trainings import losses, settings_of, task_of, write_project

from ldm.training import resident_latents
from ldm.training.data_order import Batches
from ldm.training.latent_cache import BucketLatents, Latents
from ldm.training.resident_latents import ResidentLatents, resident
from ldm.training.task import BatchSlice
from ldm.training.trainer import Trainer
from ldm.utils.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def latents(count: int, seed: int) -> Latents:
    rng = np.random.default_rng(seed)
    return Latents(*(rng.standard_normal((count, 2, 4, 4)).astype("<f2") for _ in range(2)))


def test_rows_of_several_sets_are_drawn_as_from_the_disk(monkeypatch):
    monkeypatch.setattr(resident_latents, "ROWS", 3)
    sets, noise = [latents(10, 0), latents(7, 1)], torch.randn(4, 2, 4, 4)
    table = ResidentLatents(sets, CPU)
    assert torch.equal(table.draw(torch.tensor([9, 0, 3, 3]), noise), sets[0].sample([9, 0, 3, 3], noise))
    assert torch.equal(table.draw(torch.tensor([16, 10, 12, 11]), noise), sets[1].sample([6, 0, 2, 1], noise))


def test_they_stay_on_a_gpu_that_has_room(monkeypatch):
    sets = [latents(10, 0)]
    size = sets[0].mean.nbytes + sets[0].std.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * size, 4 * size))
    monkeypatch.setattr(resident_latents, "_copied", lambda arrays, device: len(arrays))  # there is no GPU
    assert resident(sets, CUDA, None) and not resident(2 * sets, CUDA, None) and resident(2 * sets, CUDA, True)
    assert not resident(sets, CUDA, False) and not resident(sets, CPU, None) and resident(sets, CPU, True)
    with pytest.raises(UserError, match="latents_on_device: true needs .* are free: leave it out"):
        resident(5 * sets, CUDA, True)
    buckets = [BucketLatents({}, np.zeros(0, int))]
    assert not resident(buckets, CUDA, None)
    with pytest.raises(UserError, match="cached latents of one size"):
        resident(buckets, CUDA, True)


def train(project, run, wanted: bool | None) -> None:
    """On the pretend device; the latents that the loss is of, and what a batch brings, go to a file."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    install()
    with running():
        settings = settings_of("ldm", project, run, mixed_precision="no", num_workers=0)
        settings = settings.model_copy(update={"latents_on_device": wanted})
        task = task_of("ldm", settings, run, CUDA)
        seen, plain = [], task.module.losses

        def noted(clean, *others):
            seen.append(clean.cpu().numpy().tolist())
            return plain(clean, *others)

        task.module.losses = noted
        rows = "rows" in Batches(task, 0)[BatchSlice(0, 0, 4, 4)]
        Trainer(task, settings, run).fit()
    (run / "seen.json").write_text(json.dumps([rows, seen]))


def test_a_training_sees_the_same_latents(tmp_path):
    maker = Child(lambda: write_project(tmp_path / "project"), tmp_path / "made")
    assert maker.wait() == 0, maker.said()
    found = {}
    for wanted in (False, None):  # None: the pretend device has room
        run = tmp_path / str(wanted)
        child = Child(partial(train, tmp_path / "project", run, wanted), tmp_path / f"said-{wanted}")
        assert child.wait() == 0, child.said()[-4000:]
        found[wanted] = json.loads((run / "seen.json").read_text())
    assert (found[False][0], found[None][0]) == (False, True)
    assert found[False][1] == found[None][1] and len(found[None][1]) > 8  # reports look at some too
    assert losses(tmp_path / "False") == losses(tmp_path / "None")
