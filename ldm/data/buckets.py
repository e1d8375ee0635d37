"""Aspect-ratio buckets: data whose items have several sizes, each item one of them.

Such data have `sizes`, a list of (height, width), and `buckets`, (N,) int: the index of each item's size. Arrays hold
items of one size, so whoever stacks items takes them by `of_one_size` or `by_size`; all other data have one size.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np

from ldm.data import ImageTextData, Splits
from ldm.formats.image_arrays import fit_image
from ldm.utils.image_sizes import Size, resolution_of, size_of


def buckets_of(data: ImageTextData) -> np.ndarray | None:
    """The index of each item's size, (N,) int; None where all items have one size."""
    return getattr(data, "buckets", None)


def sizes_of(data: ImageTextData) -> list[Size]:
    """The sizes that items of a data set may have."""
    return [size_of(data.resolution)] if buckets_of(data) is None else getattr(data, "sizes")  # noqa: B009


def of_one_size(data: ImageTextData, indices: Sequence[int] | np.ndarray, count: int) -> Iterator[list[int]]:
    """The indices in parts of at most `count` items of one size, each size's in their order."""
    chosen, buckets = np.asarray(indices, int), buckets_of(data)
    of_items = np.zeros(len(chosen), int) if buckets is None else buckets[chosen]
    for bucket in np.unique(of_items):
        part = chosen[of_items == bucket]
        for start in range(0, len(part), count):
            yield part[start : start + count].tolist()


class Bucket:
    """The items of a data set that have one of its sizes, as a data set."""

    def __init__(self, data: ImageTextData, indices: np.ndarray, size: Size):
        self.data, self.indices = data, indices
        self.ids = [data.ids[i] for i in indices]
        self.resolution, self.channels, self.has_captions = resolution_of(size), data.channels, data.has_captions

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.data.fingerprint} {self.resolution}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, i: int) -> np.ndarray:
        """uint8 (height, width, channels)."""
        return self.data.image(int(self.indices[i]))

    def caption(self, i: int, rng: np.random.Generator) -> str:
        return self.data.caption(int(self.indices[i]), rng)


class AtOneSize(Bucket):
    """All items of a data set at its most usual size: the largest centred part of each."""

    def __init__(self, data: ImageTextData):
        super().__init__(data, np.arange(len(data)), size_of(data.resolution))

    @property
    def fingerprint(self) -> str:
        return self.data.fingerprint

    def image(self, i: int) -> np.ndarray:
        return fit_image(super().image(i), self.resolution, "crop")


def at_one_size(splits: Splits) -> Splits:
    """The splits for whoever compares images one with another, and those of a model with them."""
    found = {field.name: getattr(splits, field.name) for field in fields(splits)}
    return Splits(**{k: AtOneSize(v) if v is not None and buckets_of(v) is not None else v for k, v in found.items()})


def by_size(data: ImageTextData) -> dict[int, Bucket]:
    """The buckets of a data set that hold an item, by their index."""
    buckets, sizes = buckets_of(data), sizes_of(data)
    found = np.zeros(len(data), int) if buckets is None else buckets
    return {int(k): Bucket(data, np.flatnonzero(found == k), sizes[k]) for k in np.unique(found)}
