"""Which samples a step sees, and the seeds of all that is random in it: functions of (seed, step) alone."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.utils.data import Dataset

from ldm.config.settings import TrainOptions
from ldm.data import ImageTextData, evenly_spaced_indices
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
    uniform = torch.from_numpy(words).view(count, 2, -1).add_(0.5).mul_(2.0**-32)
    radius, angle = (-2 * uniform[:, 0].log()).sqrt_(), 2 * torch.pi * uniform[:, 1]
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return normal[:, :size].reshape(count, *shape)


class Batches(Dataset):
    """A data set of batches, indexed by `BatchSlice`.

    Sample j of step s is at position s * batch_size + j of an endless sequence of shuffled epochs; where the task has
    weights, an epoch is as many independent draws by them.
    """

    def __init__(self, task: Task, seed: int):
        self.task, self.seed = task, seed
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, rows: BatchSlice) -> dict[str, Tensor]:
        return self.task.batch(self.samples(rows), rows)

    def samples(self, rows: BatchSlice) -> list[SampleRef]:
        first = rows.step * rows.batch_size
        positions = [divmod(first + j, self.task.num_samples) for j in range(rows.start, rows.stop)]
        return [SampleRef(int(self._order(epoch)[position]), epoch) for epoch, position in positions]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) > 2:  # a batch spans few epochs; keep memory flat over thousands of them
                self._orders.clear()
            rng, count, weights = np.random.default_rng([self.seed, epoch]), self.task.num_samples, self.task.weights
            self._orders[epoch] = rng.permutation(count) if weights is None else rng.choice(count, count, p=weights)
        return self._orders[epoch]


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
    """The images of a data set (or `limit` of them, evenly spaced) in order, in [-1, 1], batch by batch."""
    chosen = evenly_spaced_indices(len(data), limit or len(data))
    for start in range(0, len(chosen), batch_size):
        yield to_images(np.stack([data.image(int(i)) for i in chosen[start : start + batch_size]]))
