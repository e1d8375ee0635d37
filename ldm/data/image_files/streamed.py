"""Training on shards: images and captions are read and decoded when a batch needs them, by their place in a shard.

A sample is a number, and the order of an epoch is a function of (seed, epoch) that is computed a window at a time. So
each sample is in an epoch once whatever the number of processes and workers, all processes have equally many steps, a
run resumes at any step without a state of its own, and memory does not grow with the number of images.

Images that cannot be decoded are written down in the cache, and the next good one of the split stands in their place.
"""

import hashlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import PurePosixPath

import numpy as np

from ldm.config.settings import DataOptions, FileOptions
from ldm.data.image_files.dataset import drawn, shuffled_tags
from ldm.data.image_files.pixel_cache import transform
from ldm.formats.decode_workers import Worker
from ldm.formats.decoding import ImageError
from ldm.formats.records import agreed_splits, split_word
from ldm.formats.shards import Shards
from ldm.utils.errors import UserError

log = logging.getLogger(__name__)

FEW_BAD = 16  # bad images that are always allowed
KEPT_ROWS = 64  # shards whose rows are kept


class Rows:
    """The rows of shards that belong to one split: row `i` of the split is (shard, row of it).

    Each shard's rows are drawn by its name alone, so other shards never move a sample from one side to the other.
    """

    def __init__(self, names: list[str], sizes: np.ndarray, chosen: list[int], held: float, validation: bool):
        """`chosen`: the shards of this split; of each, `held` of the rows are validation rows, and those are taken if
        `validation`, else the others.
        """
        self.names, self.sizes, self.chosen, self.held, self.validation = names, sizes, chosen, held, validation
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self.counts = np.array([self._count(shard) for shard in chosen], np.int64)
        self.ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def place(self, i: int) -> tuple[int, int]:
        """The shard of a row of the split, and its row there."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        at = int(np.searchsorted(self.ends, i, "right"))
        first, shard = int(self.ends[at] - self.counts[at]), self.chosen[at]
        if self.held == 0:
            return shard, i - first
        if shard not in self._kept:
            self._kept[shard] = self._rows(shard)
            if len(self._kept) > KEPT_ROWS:
                self._kept.popitem(last=False)
        return shard, int(self._kept[shard][i - first])

    def _count(self, shard: int) -> int:
        return int(self.sizes[shard]) if self.held == 0 else len(self._rows(shard))

    def _rows(self, shard: int) -> np.ndarray:
        seed = np.frombuffer(hashlib.sha256(self.names[shard].encode("utf-8", "surrogatepass")).digest(), "<u4")
        is_held = np.random.default_rng(seed).random(int(self.sizes[shard])) < self.held
        return np.flatnonzero(is_held == self.validation).astype(np.int32)


class Ids(Sequence[str]):
    """The ids of the samples of a split, "shard/row", made when they are asked for."""

    def __init__(self, rows: Rows):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        shard, row = self._rows.place(range(len(self))[i])
        return f"{self._rows.names[shard]}/{row:06d}"

    def isdisjoint(self, other: Sequence[str]) -> bool:
        """Whether no id of another split is among these. Both are of the same shards."""
        if not isinstance(other, Ids):
            return set(other).isdisjoint(self)
        mine, its = self._rows, other._rows
        return set(mine.chosen).isdisjoint(its.chosen) or (
            mine.held == its.held > 0 and mine.validation != its.validation
        )

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


class EpochOrder:
    """The order of the samples of one epoch, a function of (seed, epoch): `order[position]` is a sample.

    The shards are permuted and stand one after the other. `lanes` readers begin at equal distances in this row and take
    turns; of what they read, each `window` of samples is shuffled. So a window comes from `lanes` places, and from few
    shards in each.
    """

    def __init__(self, counts: np.ndarray, lanes: int, window: int, seed: int, epoch: int):
        """`counts`: (S,) samples in each shard, which follow one another in the numbering of samples."""
        self._seed, self._window = [seed, 13, epoch], window
        shards = np.random.default_rng([seed, 12, epoch]).permutation(len(counts))
        self._ends = np.cumsum(counts[shards])
        self._first = (np.cumsum(counts) - counts)[shards] - (self._ends - counts[shards])  # sample - place in the row
        self._total = int(counts.sum())
        lanes = min(lanes, self._total)
        self._lanes = np.arange(lanes + 1) * self._total // lanes
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, position: int) -> int:
        window, offset = divmod(position, self._window)
        if window not in self._kept:
            while len(self._kept) > 1:  # a batch may span two
                del self._kept[next(iter(self._kept))]
            self._kept[window] = self._samples(window)
        return int(self._kept[window][offset])

    def _samples(self, window: int) -> np.ndarray:
        """The samples of a window in their order."""
        turns = np.arange(window * self._window, min((window + 1) * self._window, self._total))
        turns = np.random.default_rng([*self._seed, window]).permutation(turns)
        count = len(self._lanes) - 1
        longer = np.flatnonzero(np.diff(self._lanes) > self._total // count)  # lanes with one sample more
        lane, step = turns % count, turns // count
        late = turns >= count * (self._total // count)
        lane[late] = longer[turns[late] - count * (self._total // count)]
        places = self._lanes[lane] + step
        return places + self._first[np.searchsorted(self._ends, places, "right")]


class BadRows:
    """Images that cannot be used, as (shard, row): all that any process found, in a file that each adds lines to."""

    def __init__(self, folder: Shards, key: str):
        self._file = folder.cache_dir / "shards" / f"{key[:24]}.bad"
        self._size, self._found = -1, set[tuple[int, int]]()

    def __call__(self) -> set[tuple[int, int]]:
        try:
            size = os.stat(self._file).st_size
        except OSError:
            return self._found
        if size != self._size:
            with suppress(OSError):
                lines = self._file.read_text(encoding="utf-8").splitlines()
                pairs = (line.split() for line in lines)
                self._found |= {(int(pair[0]), int(pair[1])) for pair in pairs if len(pair) == 2}
                self._size = size
        return self._found

    def add(self, shard: int, row: int) -> None:
        self._found.add((shard, row))
        with suppress(OSError), open(self._file, "a", encoding="utf-8") as stream:  # lines this short are written whole
            stream.write(f"{shard} {row}\n")


class StreamedData:
    """Images and captions of one split of shards: see `ldm.data.ImageTextData`.

    Attributes:
        ids: "shard/row" of each sample, made when asked for.
        fingerprint: hex digest of what the shards hold by their names, places and sizes, of split and transform.
    """

    def __init__(self, shards: Shards, rows: Rows, options: DataOptions):
        self.shards, self.rows, self.options = shards, rows, options
        self.ids = Ids(rows)
        self.channels: int = options.channels
        self.resolution = options.resolution
        self.has_captions = shards.has_captions()
        about = [transform(options), shards.digest, rows.chosen, rows.held, rows.validation]
        self.fingerprint = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self._bad = BadRows(shards, hashlib.sha256(shards.digest.encode()).hexdigest())
        self._forget()

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 (height, width, channels); of a bad one, the next that is good."""
        if self._owner != os.getpid():  # a forked process decodes in one of its own
            self._forget()
        for shard, row in self._from(i):
            try:
                return self._decoded(shard, row)
            except ImageError as error:
                self._add_bad(shard, row, error)
        raise UserError(f"{self.options.source}: no image can be used")

    def caption(self, i: int, rng: np.random.Generator) -> str:
        """A random one of the captions of image i, or of what stands in its place; "" when it has none."""
        files = self.options.files
        shard, row = next(self._from(i))
        captions = self.shards[shard].captions(row)
        text = drawn(captions, rng)
        return shuffled_tags(text, files.keep_tags, rng) if files.shuffle_tags else text

    def order(self, seed: int, epoch: int) -> EpochOrder:
        """The order of an epoch of training."""
        chosen = self.options.shards
        return EpochOrder(self.rows.counts, chosen.lanes, chosen.window, seed, epoch)

    def _from(self, i: int) -> Iterator[tuple[int, int]]:
        """The places of sample i and of those after it, but for those that are known to be bad."""
        places = (self.rows.place((i + k) % len(self)) for k in range(len(self)))
        return (place for place in places if place not in self._bad())

    def _decoded(self, shard: int, row: int) -> np.ndarray:
        data = self.shards[shard].image(row)
        if isinstance(data, ImageError):
            raise data
        pixels = np.frombuffer(bytearray(self._worker(data)), np.uint8)[1:]
        return pixels.reshape(*self.options.size, self.channels)

    def _add_bad(self, shard: int, row: int, error: ImageError) -> None:
        """Raises: UserError if there are too many."""
        name, allowed = f"{self.shards.names[shard]}, image {row}", self.options.files.max_bad_fraction
        self._bad.add(shard, row)
        log.warning("%s is left out: %s", name, error)
        if (count := len(self._bad())) > FEW_BAD and count > allowed * self.shards.counts.sum():
            raise UserError(
                f"{count} of {self.shards.counts.sum()} images of {self.options.source} cannot be used "
                f"(data.files.max_bad_fraction allows {allowed:.1%}), the last {name}: {error}"
            )

    def _forget(self) -> None:
        options, self._owner = self.options, os.getpid()
        how = {"resize": options.files.resize, "background": options.files.background}
        self._worker = Worker("fit", {"sizes": options.sizes, "channels": options.channels} | how)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_worker"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()


def streamed_splits(options: DataOptions) -> dict[str, StreamedData]:
    """The splits of shards: by the shards' names where these say train, val and test, else rows drawn for validation.

    Train and validation have at least one image each; it is in both where there is one only, or none is held out.
    Raises: UserError: for shards that cannot be read, and for settings that need the list of all images.
    """
    _check(options.files)
    shards = Shards(options.source, options.files, options.cache_dir, options.shards.lanes)
    words = [next(filter(None, map(split_word, PurePosixPath(name).parts)), None) for name in shards.names]
    of_shards, fraction = agreed_splits(words), options.files.validation_fraction
    chosen: dict[str, list[int]] = {}
    for shard, split in enumerate(of_shards):
        chosen.setdefault(split or "train", []).append(shard)
    whole = {name: Rows(shards.names, shards.counts, numbers, 0.0, False) for name, numbers in chosen.items()}
    if not len(whole["train"]):
        raise UserError(f"data.source {options.source} holds no images to train on")
    if not len(whole.get("validation", ())):
        divided = (Rows(shards.names, shards.counts, chosen["train"], fraction, held) for held in (False, True))
        train, validation = divided
        if fraction and len(train) and len(validation):
            whole |= {"train": train, "validation": validation}
        else:  # none is held out: a few of training stand for it
            whole["validation"] = _first(whole["train"])
    return {name: StreamedData(shards, rows, options) for name, rows in whole.items()}


def _first(rows: Rows) -> Rows:
    """The first shard of a split that holds an image."""
    shard = next(shard for shard, count in zip(rows.chosen, rows.counts, strict=True) if count)
    return Rows(rows.names, rows.sizes, [shard], 0.0, False)


def _check(files: FileOptions) -> None:
    unable = ("bucket_step", "horizontal_flip", "class_captions", "repeats")
    if asked := next((name for name in unable if getattr(files, name)), None):
        raise UserError(
            f"data.files.{asked} needs a list of all images, which shards are too many for: leave it out, or give the "
            "folder of the shards as data.source, without a pattern"
        )
