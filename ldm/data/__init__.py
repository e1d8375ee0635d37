"""Images and captions, from the glyph table or from a user's own files, behind one small interface."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ldm.utils.errors import UserError

if TYPE_CHECKING:  # else every process that decodes images would import all settings
    from ldm.config.settings import DataOptions


class ImageTextData(Protocol):
    """Images with a random caption at each call. Plain NumPy: torch is not needed to read data.

    All have one size, or each one of a few: see `ldm.data.buckets`.
    """

    channels: int
    has_captions: bool

    @property
    def ids(self) -> Sequence[str]:
        """Stable and unique: 'U+6C34/hei', 'photos/cat.jpg'."""
        ...

    @property
    def resolution(self) -> int | tuple[int, int]:
        """Side of the square images in pixels, or (height, width); with buckets the most usual."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that decides the pixels."""
        ...

    def __len__(self) -> int: ...

    def image(self, i: int) -> np.ndarray:
        """uint8 of shape (height, width, channels)."""
        ...

    def caption(self, i: int, rng: np.random.Generator) -> str:
        """One caption, '' where there is none."""
        ...


@dataclass(frozen=True)
class Splits:
    """Train and validation always hold at least one sample; test and held-out combinations may be absent."""

    train: ImageTextData
    validation: ImageTextData
    test: ImageTextData | None = None
    heldout: ImageTextData | None = None
    mixture: ImageTextData | None = None  # made-up images to train on beside the real ones (`data.mixture`)


def is_points(data: ImageTextData) -> bool:
    """Whether the items are points: images of one pixel, whose float32 channels are the coordinates."""
    return data.resolution == 1


def evenly_spaced_indices(total: int, limit: int) -> np.ndarray:
    """At most `limit` indices, evenly spaced over 0 .. total - 1: a fair sample of data that may be sorted."""
    return np.unique(np.linspace(0, total - 1, min(limit, total)).round().astype(int))


def apart(train: ImageTextData, validation: ImageTextData) -> bool:
    """Whether no item that is validated on is trained on."""
    known = getattr(train.ids, "isdisjoint", None)  # of ids that are too many for a set
    return known(validation.ids) if known else set(train.ids).isdisjoint(validation.ids)


def dataset_fingerprint(data: ImageTextData, captions: bool = True) -> dict[str, str]:
    """What a run is said to be trained on: the digest of the pixels and, of files and if asked, that of the captions.

    Captions of the data that this package makes follow from the settings.
    """
    texts = getattr(data, "captions_fingerprint", None) if captions else None
    return {"data": data.fingerprint} | ({"captions": texts} if texts else {})


def sampling_weights(data: ImageTextData) -> np.ndarray | None:
    """The probability of each item in an epoch of training, (N,) with sum 1; None where all are alike."""
    return getattr(data, "weights", None)


def epoch_order(data: ImageTextData) -> Callable[[int, int], Sequence[int]] | None:
    """(seed, epoch) -> the items of an epoch in order, for data that are not to be permuted as a whole; else None."""
    return getattr(data, "order", None)


def first_items(data: ImageTextData, count: int, seed: int) -> Sequence[int] | None:
    """`count` items that are cheap to read, of data with an `epoch_order` and more items than that; else None."""
    order = epoch_order(data)
    if order is None or count >= len(data):
        return None
    first = order(seed, 0)
    return [first[position] for position in range(count)]


def build(options: "DataOptions") -> Splits:
    """The splits of `options.source`. Raises: UserError for a source that is missing, empty or unreadable."""
    if is_own(options.source):
        if not isinstance(options.resolution, int):
            raise UserError(f"data.source {options.source} makes square images: set data.resolution to one number")
        maker = _maker(options.source)
        splits, mixture = maker.splits(options), getattr(maker, "mixture", None)
        return Splits(**splits, mixture=mixture(options, splits["train"]) if mixture else None)
    from ldm.formats.shards import is_pattern

    if is_pattern(options.source):
        from ldm.data.image_files.streamed import streamed_splits

        return Splits(**streamed_splits(options))
    from ldm.data.image_files.dataset import file_splits

    return Splits(**file_splits(options))


def is_own(source: str) -> bool:
    """Whether a module of this package makes the data: one of that name with `splits(options) -> dict` for `Splits`.

    It may have `mixture(options, train)` too, for made-up images made from the training split.
    """
    if not source.isidentifier() or importlib.util.find_spec(f"ldm.data.{source}") is None:
        return False
    return hasattr(_maker(source), "splits")


def _maker(source: str) -> ModuleType:
    """The module of a data set: a package has it in its `dataset`."""
    module = importlib.import_module(f"ldm.data.{source}")
    return importlib.import_module(f"ldm.data.{source}.dataset") if hasattr(module, "__path__") else module
