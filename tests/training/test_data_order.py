"""Which samples each process sees, and the seeds of what is random in a step."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from ldm.config.settings import TrainOptions
from ldm.training.data_order import Batches, batch_noise, batch_slices, derive_seed, small_buckets
from ldm.training.task import BatchSlice


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
        return {"x": x, "noise": batch_noise(rows, (1,), 0)}

    def report(self, folder, label):
        self.reports += 1
        torch.rand(7)  # would disturb training if the loop's randomness were not its own
        with torch.no_grad():
            return {"loss": self.module(torch.ones(4, 1), torch.zeros(4, 1), 0.0)[0].item()}

    def finish(self, folder):
        (folder / "weights.json").write_text(json.dumps([p.sum().item() for p in self.model.parameters()]))


def weights(trainer):
    averaged = trainer.ema.shadow_params if trainer.train.ema_decay else []
    return [p.detach().clone() for p in trainer.task.module.parameters()] + list(averaged)


@pytest.mark.parametrize("world, accumulation", [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_the_processes_share_each_global_batch_without_gap_or_overlap(world, accumulation):
    train = TrainOptions(num_steps=3, batch_size=16, gradient_accumulation_steps=accumulation)
    for step in range(3):
        rows = [r for rank in range(world) for r in batch_slices(train, 0, rank, world) if r.step == step]
        assert sorted(i for r in rows for i in range(r.start, r.stop)) == list(range(16))
    assert next(iter(batch_slices(train, 2, 0, world))).step == 2


def test_every_epoch_shows_every_sample_once():
    class Ids(LineTask):
        def batch(self, samples, rows):
            return [(sample.epoch, sample.index) for sample in samples]

    batches = Batches(Ids(), seed=3)
    seen = [place for step in range(5) for place in batches[BatchSlice(step, 0, 4, 4)]]  # 20 places, 10 samples
    assert sorted(seen) == [(epoch, index) for epoch in (0, 1) for index in range(10)]
    assert [i for e, i in seen if e == 0] != [i for e, i in seen if e == 1]


def test_rows_of_noise_do_not_depend_on_the_split():
    whole = batch_noise(BatchSlice(5, 0, 8, 8), (3,), 1, 2)
    parts = torch.cat([batch_noise(BatchSlice(5, a, a + 2, 8), (3,), 1, 2) for a in range(0, 8, 2)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    assert not torch.equal(whole, batch_noise(BatchSlice(6, 0, 8, 8), (3,), 1, 2))


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (4, 16, 16)])
def test_every_split_draws_the_same_noise_and_no_more(shape, monkeypatch):
    drawn, philox = [], np.random.Philox

    class Counted:
        def __init__(self, **key):
            self.bits = philox(**key)
            self.advance = self.bits.advance

        def random_raw(self, count):
            drawn.append(count)
            return self.bits.random_raw(count)

    monkeypatch.setattr(np.random, "Philox", Counted)
    whole = batch_noise(BatchSlice(5, 0, 24, 24), shape, 3)
    for size in (1, 3, 8):
        rows = [batch_noise(BatchSlice(5, at, at + size, 24), shape, 3) for at in range(0, 24, size)]
        assert torch.equal(torch.cat(rows), whole)
    assert whole.shape == (24, *shape) and drawn[0] == 24 * drawn[1] == 8 * drawn[25]  # of 1 row, of 3


def test_noise_is_box_and_mullers_of_philox():
    words = np.random.Philox(key=derive_seed(5, 3)).random_raw(4 * 2 * 4).view(np.uint32).reshape(4, 2, 8)
    first, second = ((words + 0.5) / 2**32).transpose(1, 0, 2)
    radius, angle = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)
    found = batch_noise(BatchSlice(3, 1, 3, 4), (3, 4), 5).reshape(2, 12)
    np.testing.assert_allclose(found, normal[1:3, :12], atol=2e-6)


def test_noise_is_standard_normal_and_uncorrelated():
    noise = batch_noise(BatchSlice(0, 0, 4096, 4096), (64,), 7)
    flat = noise.flatten().double().sort().values
    ranks = (torch.arange(len(flat), dtype=torch.float64) + 0.5) / len(flat)
    assert (torch.special.ndtr(flat) - ranks).abs().max() < 2 / len(flat) ** 0.5  # Kolmogorov and Smirnov's distance
    for moment, value in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert abs(flat.pow(moment).mean() - value) < 0.05
    other = batch_noise(BatchSlice(1, 0, 4096, 4096), (64,), 7)
    pairs = [(noise[:, :32], noise[:, 32:]), (noise[:-1], noise[1:]), (noise, other)]
    assert all(abs((a * b).mean()) < 0.01 for a, b in pairs)


def test_mixed_seeds_differ_and_repeat():
    assert derive_seed(1, 2) == derive_seed(1, 2)
    assert len({derive_seed(a, b) for a in range(20) for b in range(20)}) == 400
    assert all(0 <= derive_seed(a, 7) < 2**63 for a in range(100))


# ---- buckets -------------------------------------------------------------------------------------------------------


class Bucketed(LineTask):
    """Thirty samples in buckets of 17, 10 and 3."""

    buckets = np.random.default_rng(0).permutation(np.repeat([0, 2, 5], [17, 10, 3]))
    num_samples = 30

    def batch(self, samples, rows):
        return [(sample.epoch, sample.index) for sample in samples]


def test_with_buckets_every_epoch_shows_every_sample_once_in_batches_of_one_bucket():
    batches = Batches(Bucketed(), seed=3)
    seen = [batches[BatchSlice(step, 0, 4, 4)] for step in range(300)]
    assert all(len({int(Bucketed.buckets[index]) for _, index in batch}) == 1 for batch in seen)
    places = [place for batch in seen for place in batch]
    assert len(places) == len(set(places)) == 1200
    early = [place for place in places if place[0] < 35]  # of 40 epochs, the last ones may wait for their batches
    assert sorted(early) == [(epoch, index) for epoch in range(35) for index in range(30)]
    assert max(epoch for batch in seen[:15] for epoch, _ in batch) <= 2  # and they come in their turn


def test_one_bucket_is_none():
    class One(Bucketed):
        buckets = np.zeros(30, int)

    class Plain(Bucketed):
        buckets = None

    for size in (4, 7, 64):
        pair = [Batches(task(), seed=1) for task in (One, Plain)]
        for step in range(20):
            one, plain = (batches[BatchSlice(step, 0, size, size)] for batches in pair)
            assert one == plain


def test_bucket_batches_are_found_from_any_step_and_by_any_number_of_processes():
    whole = Batches(Bucketed(), seed=5)
    for step in (40, 3, 3, 41, 0):  # forwards, backwards, twice
        resumed = [Batches(Bucketed(), seed=5)[BatchSlice(step, start, start + 2, 8)] for start in range(0, 8, 2)]
        assert sum(resumed, []) == whole[BatchSlice(step, 0, 8, 8)]


def test_bucket_batches_follow_the_weights():
    class Weighted(Bucketed):
        weights = np.where(np.arange(30) < 15, 3.0, 1.0) / 60

    batches = Batches(Weighted(), seed=0)
    drawn = np.array([index for step in range(600) for _, index in batches[BatchSlice(step, 0, 4, 4)]])
    counts = np.bincount(drawn, minlength=30) / len(drawn)
    np.testing.assert_allclose(counts, Weighted.weights, atol=0.0133)  # 3 standard deviations


def test_buckets_smaller_than_a_batch_are_told_of():
    assert small_buckets(None, 64) == small_buckets(Bucketed.buckets, 3) == ""
    assert small_buckets(Bucketed.buckets, 12).startswith("2 of 3 buckets hold fewer images than a batch of 12")
    assert "once in 4 epochs" in small_buckets(Bucketed.buckets, 12)
