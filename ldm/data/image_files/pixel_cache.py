"""Images decoded once: uint8 rows in a memory-mapped .npy, found again by what the files contain.

Rows of one size make an array (N, h, w, C); with buckets, rows of several sizes lie one after another in a flat one.

The key is a digest of every sample's id and encoded bytes and of the transform, so a changed image or setting makes
a new cache and a touched or moved folder does not; the digest is remembered until a file changes (`digest_once`). The
.npy is written first and the checksummed manifest last, each atomically, by one process at a time; a cache without a
manifest, of another size or with other bytes than the manifest says is built again.
"""

import hashlib
import io
import json
import logging
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.config.settings import DataOptions
from ldm.formats.decode_workers import map_pictures
from ldm.formats.decoding import DECODE_VERSION, ImageError
from ldm.formats.records import Sample, Source
from ldm.formats.sources import open_source
from ldm.utils.atomic_files import (
    NO_SPACE,
    atomic_open,
    exclusive_lock,
    read_checksummed,
    readable_io_errors,
    require_free_space,
    write_checksummed,
)
from ldm.utils.terminal import counted
from ldm.utils.verified_files import digest_once, verify_once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pixels:
    """Decoded images: row r at `path` is sample `rows[r]`; `bad` are the (id, reason) left out."""

    path: Path
    rows: list[int]
    digests: list[str]  # sha256 of each row's pixels
    bad: list[tuple[str, str]]
    sizes: list[int]  # index of each row's size in `DataOptions.sizes`

    def shapes(self, options: DataOptions) -> list[tuple[int, int, int]]:
        """(h, w, C) of each row."""
        each = [(*size, options.channels) for size in options.sizes]
        return [each[index] for index in self.sizes]


class FlatRows:
    """Images of several shapes (h, w, C) that lie one after another in a flat array."""

    def __init__(self, flat: np.ndarray, shapes: list[tuple[int, int, int]]):
        self._flat, self._shapes = flat, shapes
        self._ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=int)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, row: int) -> np.ndarray:
        shape, end = self._shapes[row], int(self._ends[row])
        return self._flat[end - math.prod(shape) : end].reshape(shape)


def open_pixels(path: Path, shapes: list[tuple[int, int, int]]) -> np.ndarray | FlatRows:
    """The rows at a path, mapped from disk: uint8 of these shapes."""
    array = np.load(path, mmap_mode="r")
    return FlatRows(array, shapes) if array.ndim == 1 else array


def transform(options: DataOptions) -> dict[str, Any]:
    """Everything besides the files that decides the pixels."""
    chosen = {
        "decode": DECODE_VERSION,
        "resolution": options.resolution,
        "channels": options.channels,
        "resize": options.files.resize,
        "background": options.files.background,
    }
    return chosen | ({"buckets": options.sizes} if options.files.bucket_step else {})


def load_pixels(source: Source, options: DataOptions) -> Pixels:
    """The decoded images of a source, from the cache under `options.cache_dir` or into it.

    Raises: UserError: if the cache cannot be written.
    """
    key = source_key(source, options)
    stem = options.cache_dir / f"files-{key[:24]}"
    kept = _open(stem, key, source.samples, options)
    if kept is not None:
        return kept
    size = max(map(math.prod, options.sizes)) * options.channels * len(source.samples)
    advice = f"it needs {size / 2**20:.1f} MiB: {NO_SPACE}"
    with readable_io_errors(stem.with_suffix(".npy"), advice), exclusive_lock(stem):
        kept = _open(stem, key, source.samples, options)
        if kept is None:  # else another process built it while this one waited
            require_free_space(options.cache_dir, size, "the image cache")
            kept = _build(stem, key, source, options)
        return kept


def source_key(source: Source, options: DataOptions) -> str:
    """The key of a source's cache. Its files are read once, and again only after one of them changed."""
    files, more = source.read_from()
    about = json.dumps([transform(options), [sample.id for sample in source.samples], more])
    return digest_once(files, source_stamp(options), about, lambda: read_key(source, options))


def source_stamp(options: DataOptions) -> Path:
    """Where the key of `options.source`, as it is at this place, is remembered."""
    place = json.dumps([os.path.abspath(options.source), transform(options)])
    return options.cache_dir / f"files-{hashlib.sha256(place.encode()).hexdigest()[:24]}.source"


def read_key(source: Source, options: DataOptions) -> str:
    """The key of a source's cache, of all that it holds now."""
    digest = hashlib.sha256(json.dumps(transform(options), sort_keys=True).encode())
    for index, data in source.encoded():
        content = hashlib.sha256(data).digest() if isinstance(data, bytes) else f"!{data}".encode()
        digest.update(hashlib.sha256(source.samples[index].id.encode("utf-8", "surrogatepass")).digest() + content)
    return digest.hexdigest()


def _build(stem: Path, key: str, source: Source, options: DataOptions) -> Pixels:
    files = options.files
    rows: list[int] = []
    sizes: list[int] = []
    digests: list[str] = []
    bad: list[tuple[str, str]] = []
    path = stem.with_suffix(".npy")
    with atomic_open(path) as stream:  # appended, not mapped: a full disk is then an error and not a crash
        _write_header(stream, _shape(options, [0] * len(source.samples)))
        fit = {"sizes": options.sizes, "channels": options.channels}
        work = map_pictures(source, "fit", **fit, resize=files.resize, background=files.background)
        for index, result in counted(work, "decoding", len(source.samples)):
            if isinstance(result, ImageError):
                bad.append((source.samples[index].id, str(result)))
                continue
            pixels = memoryview(result)[1:]
            stream.write(pixels)
            rows.append(index)
            sizes.append(result[0])
            digests.append(hashlib.sha256(pixels).hexdigest())
        stream.seek(0)
        _write_header(stream, _shape(options, sizes))
    manifest = {"format": 2, "key": key, "rows": rows, "digests": digests, "bad": bad}
    manifest |= {"sizes": sizes} if files.bucket_step else {}
    write_checksummed(stem.with_suffix(".manifest"), json.dumps(manifest).encode())
    log.info("decoded %d images into %s", len(rows), path)
    return Pixels(path, rows, digests, bad, sizes)


def _shape(options: DataOptions, sizes: list[int]) -> tuple[int, ...]:
    """Of the array that holds rows of these sizes."""
    if not options.files.bucket_step:
        return len(sizes), *options.size, options.channels
    return (sum(math.prod(options.sizes[index]) for index in sizes) * options.channels,)


def _write_header(stream, shape: tuple[int, ...]) -> None:
    # numpy pads the header for a first axis of any length, so the second writing takes the place of the first
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _open(stem: Path, key: str, samples: list[Sample], options: DataOptions) -> Pixels | None:
    """The cache at a stem if it is complete and matches its manifest, else None."""
    path = stem.with_suffix(".npy")
    try:
        manifest = json.loads(read_checksummed(stem.with_suffix(".manifest")))
        rows, digests, bad = manifest["rows"], manifest["digests"], [tuple(pair) for pair in manifest["bad"]]
        pixels = Pixels(path, rows, digests, bad, manifest.get("sizes", [0] * len(rows)))
        array, shape = np.load(path, mmap_mode="r"), _shape(options, pixels.sizes)
        header = io.BytesIO()
        _write_header(header, shape)
        whole = manifest["format"] == 2 and manifest["key"] == key and len(rows) + len(bad) == len(samples)
        with path.open("rb") as stream:
            whole = whole and stream.read(header.tell()) == header.getvalue() and array.shape == shape
        images: Any = open_pixels(path, pixels.shapes(options)) if whole else []

        def fault() -> str | None:
            found = [hashlib.sha256(images[row]).hexdigest() for row in range(len(rows))]
            return None if found == digests else "other pixels"

        checked = [path, stem.with_suffix(".manifest")]
        whole = whole and not verify_once(checked, stem.with_suffix(".verified"), fault)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        log.warning("the image cache %s is damaged (%s) and is built again", path, error)
        return None
    if not whole:
        log.warning("the image cache %s is damaged and is built again", path)
        return None
    return pixels


def check_files(options: DataOptions) -> dict[str, str | None]:
    """What is wrong with the files of a source that was read before and with their cache, None if nothing.

    All of it is read. Raises: UserError if the source is not there.
    """
    source, stamp = open_source(options), source_stamp(options)
    known = source_key(source, options) if stamp.exists() else None
    with suppress(OSError):
        stamp.unlink()
    key = read_key(source, options)
    changed = "its content changed, though its sizes and times did not" if known not in (None, key) else None
    found = {options.source: changed}
    stem = options.cache_dir / f"files-{key[:24]}"
    if stem.with_suffix(".manifest").exists():
        with suppress(OSError):
            stem.with_suffix(".verified").unlink()
        whole = _open(stem, key, source.samples, options) is not None
        found[str(stem.with_suffix(".npy"))] = None if whole else "damaged: the next start builds it again"
    return found
