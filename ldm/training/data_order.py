"""Which samples a step sees, and the seeds of all that is random in it: functions of (seed, step) alone."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.utils.data import Dataset

from ldm.config.settings import TrainOptions
from ldm.data import ImageTextData, evenly_spaced_indices
from ldm.data.buckets import of_one_size
from ldm.training.task import BatchSlice, SampleRef, Task
from ldm.utils.image_tensors import to_images

WORDS_PER_BLOCK = 4  # of 64 bits, that Philox4x64 gives for each value of its counter
NORMALS_PER_BLOCK = 2 * WORDS_PER_BLOCK


def derive_seed(*numbers: int) -> int:
    """A 63-bit seed from several integers; equal inputs give equal seeds on every machine."""
    return int(np.random.SeedSequence(numbers).generate_state(2, np.uint32).astype(np.uint64) @ [1, 2**31])


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator seeded with `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*numbers))


def batch_noise(rows: BatchSlice, shape: tuple[int, ...], *seed: int) -> Tensor:
    """This process's rows, float32 (n, *shape), of one standard normal tensor for the whole global batch.

    Counter-based: row j is a function of (seed, step, j), so a process computes its own rows and no others. Bits of
    Philox4x64 (Salmon et al. 2011, SC'11) become pairs of normal numbers by Box and Muller's transform (1958).
    """
    count, size = rows.stop - rows.start, math.prod(shape)
    blocks = -(-size // NORMALS_PER_BLOCK)  # of each row
    bits = np.random.Philox(key=derive_seed(*seed, rows.step))
    bits.advance(rows.start * blocks)
    words = bits.random_raw(count * blocks * WORDS_PER_BLOCK).view(np.uint32).astype(np.float32)
    pairs = torch.from_numpy(words).view(count, 2, -1).add_(0.5)  # 2**32 times uniform numbers
    radius = pairs[:, 0].mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = pairs[:, 1].mul_(2 * torch.pi * 2.0**-32)
    cosine = angle.cos()
    angle.sin_().mul_(radius)  # in place: a step spends more on memory than on arithmetic here
    radius.mul_(cosine)
    return pairs.view(count, -1)[:, :size].reshape(count, *shape)


class BucketOrder:
    """Batches of one bucket each, from an endless sequence of shuffled epochs.

    The sequence is dealt out to its buckets, and a bucket makes a batch when it has `batch_size` samples; those that
    it has left at the end of an epoch begin its next batch. So each sample of each epoch is in exactly one batch, and
    where there is one bucket, batch s is positions s * batch_size to (s + 1) * batch_size of the sequence.
    """

    def __init__(self, buckets: np.ndarray, batch_size: int, order: Callable[[int], Sequence[int] | np.ndarray]):
        """`order`: epoch -> the indices of its samples."""
        self.buckets, self.batch_size, self.order = buckets, batch_size, order
        self._start()

    def _start(self) -> None:
        self._epoch, self._first = 0, 0  # the next epoch to deal out; the step of the first batch kept
        self._waiting, self._batches = np.empty((0, 2), int), np.empty((0, self.batch_size, 2), int)

    def batch(self, step: int) -> np.ndarray:
        """(index, epoch) of the samples of a step, (batch_size, 2). Cheapest in the order of the steps."""
        if step < self._first:
            self._start()
        while step >= self._first + len(self._batches):
            self._first += len(self._batches)
            self._deal_out()
        return self._batches[step - self._first]

    def _deal_out(self) -> None:
        """The batches that one more epoch completes, in the order in which it does."""
        indices = np.asarray(self.order(self._epoch))
        new = np.stack([indices, np.full(len(indices), self._epoch)], 1)
        samples, ends, made, left = np.concatenate([self._waiting, new]), [], [], []
        for bucket in np.unique(self.buckets):
            (at,) = np.nonzero(self.buckets[samples[:, 0]] == bucket)
            full = len(at) // self.batch_size * self.batch_size
            batches = at[:full].reshape(-1, self.batch_size)
            ends.append(batches[:, -1])
            made.append(samples[batches])
            left.append(at[full:])
        self._batches = np.concatenate(made)[np.argsort(np.concatenate(ends))]
        self._waiting = samples[np.sort(np.concatenate(left))]
        self._epoch += 1


def small_buckets(buckets: np.ndarray | None, batch_size: int) -> str:
    """A remark if there are buckets with fewer items than a batch, else ""."""
    counts = np.bincount(buckets) if buckets is not None else np.empty(0, int)
    counts = counts[counts > 0]
    if not (few := (counts < batch_size).sum()):
        return ""
    return (
        f"{few} of {len(counts)} buckets hold fewer images than a batch of {batch_size}, the smallest {counts.min()}: "
        f"its images are trained on several times in one batch, once in {-(-batch_size // counts.min())} epochs; "
        "lower train.batch_size, or raise data.files.bucket_step for fewer buckets"
    )


class Batches(Dataset):
    """A data set of batches, indexed by `BatchSlice`.

    Sample j of step s is at position s * batch_size + j of an endless sequence of shuffled epochs; where the task has
    weights, an epoch is as many independent draws by them. With buckets it is that of `BucketOrder`, and of streamed
    shards that of `ldm.data.epoch_order`.
    """

    def __init__(self, task: Task, seed: int):
        self.task, self.seed = task, seed
        self._orders: dict[int, Sequence[int] | np.ndarray] = {}
        self._bucketed: BucketOrder | None = None

    def __getitem__(self, rows: BatchSlice) -> dict[str, Tensor]:
        return self.task.batch(self.samples(rows), rows)

    def samples(self, rows: BatchSlice) -> list[SampleRef]:
        if self.task.buckets is not None:
            chosen = self._bucket_order(rows.batch_size).batch(rows.step)[rows.start : rows.stop]
            return [SampleRef(index, epoch) for index, epoch in chosen.tolist()]
        first = rows.step * rows.batch_size
        positions = [divmod(first + j, self.task.num_samples) for j in range(rows.start, rows.stop)]
        return [SampleRef(int(self._order(epoch)[position]), epoch) for epoch, position in positions]

    def _bucket_order(self, batch_size: int) -> BucketOrder:
        if self._bucketed is None or self._bucketed.batch_size != batch_size:
            assert self.task.buckets is not None
            self._bucketed = BucketOrder(self.task.buckets, batch_size, self._order)
        return self._bucketed

    def _order(self, epoch: int) -> Sequence[int] | np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) > 2:  # a batch spans few epochs; keep memory flat over thousands of them
                self._orders.clear()
            self._orders[epoch] = self._new_order(epoch)
        return self._orders[epoch]

    def _new_order(self, epoch: int) -> Sequence[int] | np.ndarray:
        order = getattr(self.task, "order", None)  # few tasks have one
        if order is not None:
            return order(self.seed, epoch)
        rng, count, weights = np.random.default_rng([self.seed, epoch]), self.task.num_samples, self.task.weights
        return rng.permutation(count) if weights is None else rng.choice(count, count, p=weights)


def batch_slices(train: TrainOptions, first_step: int, rank: int, world: int) -> Iterator[BatchSlice]:
    """The slices that one process handles, step by step, accumulation step by accumulation step."""
    size = train.batch_size // (world * train.gradient_accumulation_steps)
    for step in range(first_step, train.num_steps):
        for micro in range(train.gradient_accumulation_steps):
            start = (micro * world + rank) * size
            yield BatchSlice(step, start, start + size, train.batch_size)


def image_batches(
    data: ImageTextData, batch_size: int = 64, limit: int | None = None
) -> Iterator[Float32[Tensor, "b C H W"]]:
    """The images of a data set (or `limit` of them, evenly spaced) in [-1, 1], in order; with buckets size by size."""
    for part in of_one_size(data, evenly_spaced_indices(len(data), limit or len(data)), batch_size):
        yield to_images(np.stack([data.image(i) for i in part]))
