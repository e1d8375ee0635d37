"""One's own images as training data: an image folder, parquet, or a Hub data set.

Bad images are listed and left out, up to `data.files.max_bad_fraction`; the user's folder is only ever read. A
source's own train/validation/test division is kept; otherwise a sample's id decides by hash whether it is validation,
so adding images never moves one from one side to the other.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldm.config.settings import DataOptions
from ldm.data.image_files.pixel_cache import FlatRows, Pixels, load_pixels, open_pixels, transform
from ldm.formats.records import Sample, first_few
from ldm.formats.sources import open_source
from ldm.utils.errors import UserError

log = logging.getLogger(__name__)


class FileData:
    """Images and captions of one split.

    With `flip` the images follow once more, mirrored left to right, under the ids "name|flip".

    Attributes:
        ids: unique, stable sample ids.
        channels: of every image.
        resolution: of every image; with buckets the most usual.
        sizes, buckets: (height, width) of the buckets, and the index of each image's, None where there are none; see
            `ldm.data.buckets`.
        has_captions: whether any sample of the source has a caption.
        fingerprint: hex digest of ids, pixels and transform; captions have no part in it.
        captions_fingerprint: hex digest of the captions of each image, in order.
        weights: the probability of each image in an epoch of training; None where all are alike.
    """

    def __init__(self, pixels: Pixels, rows: list[int], samples: list[Sample], options: DataOptions, flip: bool):
        chosen = [samples[pixels.rows[row]] for row in rows]
        self.ids = [sample.id for sample in chosen] + [f"{sample.id}|flip" for sample in chosen if flip]
        self.channels: int = options.channels
        self.resolution, self.sizes = options.resolution, options.sizes
        of_rows = np.array([pixels.sizes[row] for row in rows] * (2 if flip else 1))
        self.buckets = of_rows if options.files.bucket_step else None
        self.has_captions = any(sample.captions for sample in samples)
        self._captions = [sample.captions for sample in chosen]
        self._shuffle, self._keep = options.files.shuffle_tags, options.files.keep_tags
        self.weights = _weights([sample.repeats for sample in chosen] * (2 if flip else 1))
        self._path, self._rows = pixels.path, rows
        self._shapes = pixels.shapes(options)
        parts = [transform(options), flip, [(samples[pixels.rows[r]].id, pixels.digests[r]) for r in rows]]
        self.fingerprint = _digest(parts)
        self.captions_fingerprint = _digest(self._captions)

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 (height, width, channels), a copy of its own."""
        flipped, place = divmod(self._place(i), len(self._rows))
        pixels = self._array[self._rows[place]]
        return np.array(pixels[:, ::-1] if flipped else pixels)

    def caption(self, i: int, rng: np.random.Generator) -> str:
        """A random one of the captions of image i; "" when it has none."""
        captions = self._captions[self._place(i) % len(self._rows)]
        text = drawn(captions, rng)
        return shuffled_tags(text, self._keep, rng) if self._shuffle else text

    def _place(self, i: int) -> int:
        count = len(self)
        if not -count <= i < count:
            raise IndexError(f"sample {i} of {count}")
        return i % count

    @functools.cached_property
    def _array(self) -> np.ndarray | FlatRows:
        return open_pixels(self._path, self._shapes)

    def __getstate__(self) -> dict:
        # a worker process opens the map itself instead of receiving a copy of all images
        return {name: value for name, value in self.__dict__.items() if name != "_array"}


def drawn(captions: Sequence[str], rng: np.random.Generator) -> str:
    """A random one, "" of none. One alone is no use of `rng`, which may then never be begun."""
    return captions[int(rng.integers(len(captions)))] if len(captions) > 1 else "".join(captions)


def shuffled_tags(text: str, keep: int, rng: np.random.Generator) -> str:
    """Tags between commas in random order, but for the first `keep`."""
    tags = [tag for part in text.split(",") if (tag := part.strip())]
    return ", ".join(tags[:keep] + [tags[keep + i] for i in rng.permutation(max(0, len(tags) - keep))])


def _weights(repeats: list[int]) -> np.ndarray | None:
    """Probabilities in proportion, (N,) with sum 1; None where all are equal."""
    counts = np.asarray(repeats, np.float64)
    return None if (counts == counts[0]).all() else counts / counts.sum()


def _digest(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_splits(options: DataOptions) -> dict[str, FileData]:
    """Read one's own images.

    Returns: "train" and "validation", and "test" where the source itself has one. Train and validation have at least
        one image each; it is in both where the source holds one image only, or `validation_fraction` is 0.
    Raises: UserError: for a missing or empty source, wrong columns, or more bad images than allowed.
    """
    _keep_out(Path(options.source), options.cache_dir)
    source = open_source(options)
    for note in source.notes:
        log.warning("%s: %s", options.source, note)
    pixels = load_pixels(source, options)
    _judge(pixels, len(source.samples), options)
    splits = divide([source.samples[index] for index in pixels.rows], options.files.validation_fraction)
    flip = options.files.horizontal_flip
    return {
        name: FileData(pixels, rows, source.samples, options, flip and name == "train") for name, rows in splits.items()
    }


def _keep_out(root: Path, cache_dir: Path) -> None:
    """The user's folder is never written to, so the cache may not lie in it."""
    if root.is_dir() and cache_dir.resolve().is_relative_to(root.resolve()):
        raise UserError(f"data.cache_dir {cache_dir} lies in the data folder {root}: set it to a folder elsewhere")


def _judge(pixels: Pixels, total: int, options: DataOptions) -> None:
    """List the images left out; stop when they are too many."""
    bad, allowed = len(pixels.bad), options.files.max_bad_fraction
    if not bad:
        return
    few = first_few([f"{name} ({reason})" for name, reason in pixels.bad])
    if bad == total or bad > allowed * total:
        limit = f"data.files.max_bad_fraction allows {allowed:.1%}"
        raise UserError(
            f"{bad} of {total} images of {options.source} cannot be used ({limit}): {few}; "
            f"`ldm data check {options.source}` lists them all"
        )
    log.warning("%s: %d of %d images are left out: %s", options.source, bad, total, few)


def divide(samples: list[Sample], fraction: float) -> dict[str, list[int]]:
    """Places in `samples` of each split: the source's own division, or validation by a hash of the id.

    Raises: UserError: if nothing is left to train on.
    """
    rows: dict[str, list[int]] = {"train": [], "validation": []}
    for row, sample in enumerate(samples):
        rows.setdefault(sample.split or "train", []).append(row)
    if not rows["train"]:
        raise UserError("every image of the train split is bad: `ldm data check` lists them")
    if rows["validation"]:
        return rows
    chance = {row: hash_fraction(samples[row].id) for row in rows["train"]}
    chosen = {row for row in chance if chance[row] < fraction}
    order = sorted(chance, key=chance.__getitem__)
    chosen = chosen or {order[0]}
    if len(chosen) == len(order) > 1:
        chosen.discard(order[-1])
    rows["validation"] = sorted(chosen)
    if fraction > 0 and len(order) > 1:
        rows["train"] = [row for row in rows["train"] if row not in chosen]
    return rows


def hash_fraction(name: str) -> float:
    """A number in [0, 1) that depends on nothing but the name, even over names."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
