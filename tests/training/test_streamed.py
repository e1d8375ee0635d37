"""Streamed shards through the loop's loader: two processes with two workers each, whole epochs and resumed ones."""

import random

import numpy as np
import pytest
import torch
from packed import COUNTS, write_shards
from tiny_trainings import settings_of, task_of
from torch.utils.data import DataLoader

from ldm.config.settings import DataOptions, TrainOptions
from ldm.data import build, epoch_order
from ldm.training.data_order import Batches, batch_slices
from ldm.training.live_latents import LiveLatents
from ldm.training.task import BatchSlice, SampleRef
from ldm.training.tasks.clip import draw_captions

TOTAL, BATCH, EPOCHS = sum(COUNTS), 8, 3
STEPS = TOTAL * EPOCHS // BATCH
WORLD, WORKERS = 2, 2


def options(tmp_path, kind: str, **changes) -> DataOptions:
    pattern = write_shards(tmp_path / "shards", kind)
    shards = {"lanes": 3, "window": 10}
    files = {"validation_fraction": 0}
    return DataOptions(
        source=pattern, resolution=16, cache_dir=tmp_path / "cache", files=files, shards=shards, **changes
    )


class Levels:
    """Of each sample its number, the level of its image, and that in its caption."""

    weights, buckets = None, None

    def __init__(self, data):
        self.data, self.num_samples, self.order = data, len(data), epoch_order(data)

    def batch(self, samples, rows):
        rng = np.random.default_rng(0)
        seen = [(s.index, s.epoch, self.data.image(s.index)[0, 0, 0], self.data.caption(s.index, rng)) for s in samples]
        return torch.tensor([[index, epoch, level, int(text.split()[1])] for index, epoch, level, text in seen])


def stream(task, first: int, rank: int, workers: int) -> list[torch.Tensor]:
    """What one of two processes is given from a step on, batch by batch."""
    train = TrainOptions(num_steps=STEPS, batch_size=BATCH)
    sampler = batch_slices(train, first, rank, WORLD)
    return list(DataLoader(Batches(task, 5), sampler=sampler, batch_size=None, num_workers=workers))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_two_processes_with_two_workers_see_each_sample_once_in_an_epoch(tmp_path, kind):
    task = Levels(build(options(tmp_path, kind)).train)
    ranks = [stream(task, 0, rank, WORKERS) for rank in range(WORLD)]
    assert [len(one) for one in ranks] == [STEPS, STEPS]
    steps = [torch.cat(pair) for pair in zip(*ranks, strict=True)]
    seen = torch.cat(steps)
    assert (seen[:, 0] == seen[:, 2]).all() and (seen[:, 0] == seen[:, 3]).all()
    for epoch in range(EPOCHS):
        part = seen[epoch * TOTAL : (epoch + 1) * TOTAL]
        assert sorted(part[:, 0].tolist()) == list(range(TOTAL))[: len(part)] or len(part) < TOTAL
        assert (part[:, 1] == epoch).all()
    for first in random.Random(0).sample(range(STEPS), 6):  # resumed there, by the other number of workers
        for rank in range(WORLD):
            assert torch.equal(torch.stack(stream(task, first, rank, 0)), torch.stack(ranks[rank][first:]))


def test_captions_for_a_tokenizer_come_from_few_shards(tmp_path, monkeypatch):
    data, read = build(options(tmp_path, "tar")).train, []
    plain = data.rows.place
    monkeypatch.setattr(data.rows, "place", lambda i: read.append(i) or plain(i))
    assert len(draw_captions(data, 10, 0)) == 10
    assert read == [data.order(0, 0)[position] for position in range(10)]
    assert len(draw_captions(data, 2 * TOTAL, 0)) == 2 * TOTAL


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    from tiny_trainings import write_project

    return write_project(tmp_path_factory.mktemp("live"))


def test_latents_of_each_step_are_those_of_the_cache(project, tmp_path):
    settings = settings_of("ldm", project, tmp_path / "ldm")
    cached = task_of("ldm", settings, tmp_path / "ldm")
    live = task_of("ldm", settings.model_copy(update={"cache_latents": False}), tmp_path / "live")
    latents = live.components.train.latents
    assert isinstance(latents, LiveLatents) and latents.shape_of(0) == cached.components.train.latents.shape_of(0)
    noise = torch.randn(2, *latents.shape_of(0))
    torch.testing.assert_close(
        latents.sample([3, 1], noise), cached.components.train.latents.sample([3, 1], noise), atol=5e-3, rtol=0
    )
    assert live.__getstate__()["components"].__getstate__()["train"].latents.__getstate__()["vae"] is None
    rows, samples = BatchSlice(3, 0, 4, 4), [SampleRef(i, 0) for i in (5, 0, 2, 1)]
    losses = []
    for task in (cached, live):
        task.module.eval()
        loss, _ = task.module(**task.batch(samples, rows), progress=0.0)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
    assert {name for name, _ in live.module.named_parameters()} == {
        name for name, _ in cached.module.named_parameters()
    }
    assert live.validate()["loss"] == pytest.approx(cached.validate()["loss"], rel=5e-3)
