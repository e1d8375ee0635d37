"""The interface between the training loop and what it trains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from ldm.data import ImageTextData
from ldm.training.sample_generators import generators

LossAndMetrics = tuple[Tensor, dict[str, Tensor]]  # the second: named scalars to log


@dataclass(frozen=True)
class BatchSlice:
    """The rows of a global batch that one process handles in one accumulation step."""

    step: int
    start: int
    stop: int
    batch_size: int  # global


@dataclass(frozen=True)
class SampleRef:
    """One position in the stream of samples: which item, in which epoch."""

    index: int
    epoch: int


class Task(Protocol):
    """What the trainer trains: a module whose forward gives the loss, and its batches."""

    module: nn.Module  # forward(**batch) -> LossAndMetrics; everything trainable is in it
    model: nn.Module  # the part of it that is exported: EMA follows its parameters
    fingerprints: dict[str, str]  # what -> digest: of all that decides the training and is in no checkpoint
    num_samples: int
    weights: np.ndarray | None  # (num_samples,) with sum 1: how often each sample is drawn; None = all alike
    buckets: np.ndarray | None  # (num_samples,) int: a batch holds samples of one bucket; None = any
    order: Callable[[int, int], Sequence[int]] | None  # (seed, epoch) -> its samples in order; None = a permutation
    find_unused_parameters: bool
    channels_last: bool  # whether that layout pays on a CPU in bf16; on CUDA it does

    def batch(self, samples: list[SampleRef], rows: BatchSlice) -> dict[str, Tensor]:
        """CPU tensors for these samples; may depend on (seed, step) and the samples, never on the rank.

        The data loader's workers call it, so what it needs can be pickled, and a network is not among it.
        """
        ...

    def report(self, folder: Path, label: str) -> dict[str, float]:
        """Validation numbers of the model as it is now, and images written into `folder`; main process only."""
        ...

    def has_validation(self) -> bool:
        """Whether there are items to validate on that are not trained on."""
        ...

    def validate(self) -> dict[str, float]:
        """Validation of the model as it is now, as in `ldm.training.validation`, without its step; main process."""
        ...

    def finish(self, folder: Path) -> None:
        """Save the finished components as diffusers and transformers do into an empty folder; main process only."""
        ...


def captions_of(items: Sequence[tuple[ImageTextData, SampleRef]], seed: int, dropout: float = 0.0) -> list[str]:
    """The caption drawn for each item in its epoch: the same in every process and after a resume.

    Args:
        dropout: the probability of the null caption instead.
    """
    rngs = generators((seed, 3), [(one.epoch, one.index) for _, one in items])
    return [
        "" if dropout and rng.random() < dropout else data.caption(one.index, rng)
        for (data, one), rng in zip(items, rngs, strict=True)
    ]


def from_mixture(
    mixture: ImageTextData, rows: BatchSlice, share: float, seed: int, eligible: np.ndarray | None = None
) -> dict[int, SampleRef]:
    """Position in this process's rows -> the synthetic image that stands there instead of a sample.

    Args:
        share: of the images, drawn anew in each step.
        eligible: bool (batch_size,), which of the global batch may be replaced; None = all.
    """
    rng = np.random.default_rng([seed, 9, rows.step])
    chosen = rng.random(rows.batch_size) < share
    indices = rng.integers(len(mixture), size=rows.batch_size)
    if eligible is not None:
        chosen &= eligible
    return {j - rows.start: SampleRef(int(indices[j]), rows.step) for j in range(rows.start, rows.stop) if chosen[j]}
