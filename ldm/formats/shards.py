"""Shards of a large data set: tar files as webdataset packs them, or parquet, read image by image where they lie.

A pattern names them: "shards/train-*.tar", "shards/{0000..0127}.tar", or parquet files of the Hub,
"hf://datasets/user/name/data/*.parquet", of which only the rows that are asked for are transferred. What a shard holds
is written down once, in the cache, until its file changes. An image is then found by its place, so that no list of all
images is ever in memory: only the row groups of parquet files that were read last.
"""

import functools
import glob
import hashlib
import itertools
import json
import logging
import os
import posixpath
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from ldm.config.settings import FileOptions
from ldm.formats.archives import members
from ldm.formats.captions import MAX_CAPTION_BYTES, captions_in
from ldm.formats.decoding import MAX_BYTES, ImageError
from ldm.formats.folder import is_image
from ldm.formats.records import clean_captions, first_few, require_column
from ldm.formats.safe_tree import reason
from ldm.formats.tables import class_names, features_of, named, one_line, readable, require_images
from ldm.utils.atomic_files import NO_SPACE, atomic_open, atomic_write, exclusive_lock, readable_io_errors
from ldm.utils.errors import UserError, redacted
from ldm.utils.terminal import counted

log = logging.getLogger(__name__)

HUB = "hf://"
KINDS = (".tar", ".parquet")
INDEX_VERSION = 2  # raise it when the index of the same file would be another
GROUP_BYTES = 2**28  # of row groups that a process keeps
READ_AT_ONCE = 8
RECENT, AGAIN = 64, 20  # row groups dropped last, and how many of them are read anew before a warning
TEXT, JSON = 1, 2  # kinds of captions beside an image
CAPTION_KINDS = {".txt": TEXT, ".caption": TEXT, ".json": JSON}  # the first that an image has counts


def is_pattern(source: str) -> bool:
    """Whether `data.source` names shards by a pattern."""
    return source.startswith(HUB) or (re.search(r"[*?\[{]", source) is not None and not os.path.exists(source))


def find_shards(pattern: str, revision: str | None = None) -> list[str]:
    """The shards that a pattern names, in order; of the Hub at a revision, unless the pattern says "name@revision".

    Raises: UserError if there are none, or of more than one kind.
    """
    if pattern.startswith(HUB):
        at = rf"\1@{revision}\2" if revision else r"\1\2"
        return _of_one_kind(_on_hub(re.sub(r"^(hf://datasets/[^/@]+/[^/@]+)(/)", at, pattern)), pattern)
    found: set[str] = set()
    for one in _spelled_out(os.path.expanduser(pattern)):
        here = glob.glob(one, recursive=True)
        if not here and not glob.has_magic(one):
            raise UserError(f"data.source {pattern}: {one} does not exist")
        found.update(here)
    return _of_one_kind(sorted(found), pattern)


def _of_one_kind(paths: list[str], pattern: str) -> list[str]:
    kinds = {PurePosixPath(path).suffix.lower() for path in paths}
    if not paths:
        raise UserError(f"data.source {pattern} fits no file: a pattern of .tar or .parquet files was expected")
    if len(kinds) > 1 or not kinds <= set(KINDS):
        others = [path for path in paths if PurePosixPath(path).suffix.lower() not in KINDS] or paths[:1] + paths[-1:]
        raise UserError(f"data.source {pattern} must fit .tar files or .parquet files alone, got {first_few(others)}")
    if paths[0].startswith(HUB) and kinds == {".tar"}:
        raise UserError(f"data.source {pattern}: of the Hub only parquet files are streamed; download the tar files")
    return paths


def _spelled_out(pattern: str) -> Iterator[str]:
    """{00..03} and {a,b} in a pattern -> each of its values."""
    parts = re.split(r"(\{[^{}]*\})", pattern)
    yield from map("".join, itertools.product(*map(_values, parts)))


def _values(part: str) -> list[str]:
    if not part.startswith("{"):
        return [part]
    ends = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", part)
    if not ends:
        return part[1:-1].split(",")
    first, last = int(ends[1]), int(ends[2])
    return [f"{number:0{len(ends[1])}d}" for number in range(first, last + 1)]


def _on_hub(pattern: str) -> list[str]:
    from huggingface_hub import HfFileSystem

    try:
        return sorted(HUB + path for path in HfFileSystem().glob(pattern.removeprefix(HUB)))
    except Exception as error:
        raise _no_hub(pattern, error) from error


def _no_hub(path: str, error: Exception) -> UserError:
    return UserError(f"cannot read {path} from the Hub: {redacted(one_line(error))}; check the name and the network")


class Shard(Protocol):
    def image(self, row: int) -> bytes | ImageError:
        """The file of an image, or why it cannot be used."""
        ...

    def captions(self, row: int) -> tuple[str, ...]: ...


class Shards:
    """All shards that a pattern names.

    Attributes:
        paths: of each, in order.
        names: relative to the folder that all are in.
        counts: (S,) int, images in each.
        digest: hex digest of what the shards hold, by names, sizes and places, but not by the bytes of each image.
    """

    def __init__(self, pattern: str, options: FileOptions, cache_dir: Path, at_once: int = READ_AT_ONCE):
        """`at_once`: from how many shards samples are read by turns; three times as many stay open."""
        self.paths, self.options, self.cache_dir = find_shards(pattern, options.revision), options, cache_dir
        self._most_open = 3 * at_once
        paths: Any = posixpath if pattern.startswith(HUB) else os.path
        folder = paths.commonpath([paths.dirname(path) for path in self.paths])
        self.names = [paths.relpath(path, folder).replace(os.sep, "/") for path in self.paths]
        self._indices = [self._index_file(path) for path in self.paths]
        numbers = counted(range(len(self.paths)), "reading", len(self.paths), "shards")
        about = [self._about(number) for number in numbers]
        self.counts = np.array([one["images"] for one in about], np.int64)
        named_digests = [[name, one["digest"]] for name, one in zip(self.names, about, strict=True)]
        self.digest = hashlib.sha256(json.dumps(named_digests).encode()).hexdigest()
        self._forget()

    def __getitem__(self, shard: int) -> Shard:
        if self._owner != os.getpid():  # a forked process reads by files of its own
            self._forget()
        return self._opened(shard)

    def has_captions(self) -> bool:
        """Whether the first shard has any."""
        if not self.options.caption_column:
            return False
        index = self._index(0)
        return index.ndim == 1 or bool(index[:, 4].any())

    def _forget(self) -> None:
        self._owner, self._groups = os.getpid(), RowGroups(GROUP_BYTES)
        self._opened = functools.lru_cache(self._most_open)(self._open)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_opened", "_groups")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()

    def _open(self, shard: int) -> Shard:
        path, index = self.paths[shard], self._index(shard)
        if index.ndim == 2:
            return TarShard(path, index, self.options)
        return ParquetShard(path, index, self.options, self._groups)

    def _index_file(self, path: str) -> Path:
        """Where the index of a shard is, by what the system or the Hub says of the file."""
        about = [INDEX_VERSION, *_facts(path), self.options.image_column, self.options.caption_column]
        return self.cache_dir / "shards" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]}.npy"

    def _index(self, shard: int) -> np.ndarray:
        """What a shard holds: see `tar_index` and `parquet_index`."""
        with suppress(OSError, ValueError, EOFError):
            return np.load(self._indices[shard], mmap_mode="r")  # one copy for all processes
        return self._write_index(shard)

    def _about(self, shard: int) -> dict[str, Any]:
        """{"images": number of them, "digest": of the index}: read instead of the index itself at a start."""
        file = self._indices[shard].with_suffix(".json")
        with suppress(OSError, ValueError, LookupError, TypeError):
            about = json.loads(file.read_text(encoding="utf-8"))
            return {"images": int(about["images"]), "digest": str(about["digest"])}
        index = self._index(shard)
        about = {"images": int(index[-1]) if index.ndim == 1 else len(index)}
        held = index.tobytes()
        if index.ndim == 1:  # which says nothing of the images
            held = json.dumps(parquet_layout(self.paths[shard], self.options)).encode()
        about["digest"] = hashlib.sha256(held).hexdigest()
        with readable_io_errors(file, NO_SPACE):
            atomic_write(file, json.dumps(about).encode())
        return about

    def _write_index(self, shard: int) -> np.ndarray:
        file, path = self._indices[shard], self.paths[shard]
        with readable_io_errors(file, NO_SPACE), exclusive_lock(file, quiet=True):
            with suppress(OSError, ValueError, EOFError):
                return np.load(file, mmap_mode="r")  # another process made it while this one waited
            index = tar_index(Path(path)) if path.lower().endswith(".tar") else parquet_index(path, self.options)
            with atomic_open(file) as stream:
                np.lib.format.write_array(stream, index, allow_pickle=False)
        return index


def _facts(path: str) -> list:
    if not path.startswith(HUB):
        try:
            found = os.stat(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from error
        return [os.path.abspath(path), found.st_size, found.st_mtime_ns, found.st_ino]
    from huggingface_hub import HfFileSystem

    try:
        about = HfFileSystem().info(path)
    except Exception as error:
        raise _no_hub(path, error) from error
    lfs = about.get("lfs") or {}
    return [path, about["size"], str(about.get("blob_id")), str(lfs.get("sha256"))]


def tar_index(path: Path) -> np.ndarray:
    """(n, 5) int64: the offset and bytes of each image, in its order, those of its captions, and their kind or 0."""
    places = members(path)
    beside: dict[str, dict[str, tuple[int, int]]] = {}
    for name, place in places.items():
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in CAPTION_KINDS:
            beside.setdefault(_key(name), {})[suffix] = place
    rows = []
    for name, place in places.items():
        if is_image(name):
            captions = beside.get(_key(name), {})
            kind = next((suffix for suffix in CAPTION_KINDS if suffix in captions), "")
            rows.append([*place, *captions.get(kind, (0, 0)), CAPTION_KINDS.get(kind, 0)])
    return np.array(sorted(rows), np.int64).reshape(-1, 5)


def _key(name: str) -> str:
    """What the files of one sample have in common: the name up to its first dot."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


class TarShard:
    """The images of a tar file, by their places in it."""

    def __init__(self, path: str, index: np.ndarray, options: FileOptions):
        self._path, self._index, self._options = path, index, options
        try:
            self._stream = open(path, "rb", buffering=0)
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from error

    def image(self, row: int) -> bytes | ImageError:
        start, size = self._index[row, :2].tolist()
        if size > MAX_BYTES:
            return ImageError(f"the image has more than {MAX_BYTES} bytes")
        return self._part(row, start, size)

    def captions(self, row: int) -> tuple[str, ...]:
        start, size, kind = self._index[row, 2:].tolist()
        if not kind or not self._options.caption_column or size > MAX_CAPTION_BYTES:
            return ()
        try:
            return captions_in(self._part(row, start, size), "a.json" if kind == JSON else "a.txt", self._options)
        except ValueError as error:
            log.warning("%s: the caption of image %d is left out: %s", self._path, row, error)
            return ()

    def _part(self, row: int, start: int, size: int) -> bytes:
        """Bytes of the file. Raises: UserError: for what is the disk's fault and not the image's."""
        try:
            self._stream.seek(start)
            data = self._stream.read(size)
            if len(data) < size:
                raise OSError("the archive ends before the file does")
        except OSError as error:
            raise UserError(f"cannot read {self._path}, image {row}: {reason(error)}") from error
        return data


class RowGroups:
    """The row groups that were read last, of all parquet files of a process, up to so many bytes together."""

    def __init__(self, most: int):
        self._most, self._held, self._tables = most, 0, OrderedDict[tuple[str, int], Any]()
        self._dropped, self._again = OrderedDict[tuple[str, int], None](), 0

    def get(self, file: Any, path: str, number: int, columns: list[str]) -> Any:
        """These columns of a row group, as a table."""
        key = (path, number)
        if key not in self._tables:
            self._count(key)
            with readable(path):
                self._tables[key] = file.read_row_group(number, columns=columns, use_threads=False)
            self._held += self._tables[key].nbytes
        self._tables.move_to_end(key)
        while self._held > self._most and len(self._tables) > 1:
            oldest, table = self._tables.popitem(last=False)
            self._held -= table.nbytes
            self._dropped[oldest] = None
            if len(self._dropped) > RECENT:
                self._dropped.popitem(last=False)
        return self._tables[key]

    def _count(self, key: tuple[str, int]) -> None:
        """Warn once if row groups are read that were dropped shortly before."""
        self._again += key in self._dropped
        if self._again == AGAIN:
            self._again += 1
            log.warning(
                "row groups of %s are read again and again: those of a window have more than %d MiB. Lower "
                "data.shards.lanes, or write smaller row groups",
                key[0],
                self._most >> 20,
            )


def parquet_index(path: str, options: FileOptions) -> np.ndarray:
    """(g + 1,) int64: the first row of each row group, and the number of rows. Raises: UserError: for its columns."""
    file = _open_parquet(path)
    schema = file.schema_arrow
    require_column(options.image_column, schema.names, "image", path)
    require_images(schema.field(options.image_column).type, options.image_column, path)
    if options.caption_column:
        others = [name for name in schema.names if name != options.image_column]
        require_column(options.caption_column, others, "caption", path)
    rows = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    return np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)


def parquet_layout(path: str, options: FileOptions) -> list:
    """What tells images apart that have not been read: column, rows and bytes of each part; on the Hub, digests."""
    about = _open_parquet(path).metadata
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    parts = [(group.num_rows, group.column(j)) for group in groups for j in range(group.num_columns)]
    sizes = [
        [rows, part.path_in_schema, part.total_compressed_size, part.total_uncompressed_size]
        for rows, part in parts
        if part.path_in_schema.split(".")[0] == options.image_column
    ]
    return [options.image_column, sizes, _facts(path)[2:] if path.startswith(HUB) else []]


def _open_parquet(path: str) -> Any:
    import pyarrow.parquet

    if not path.startswith(HUB):
        with readable(path):
            return pyarrow.parquet.ParquetFile(path)
    from huggingface_hub import HfFileSystem

    try:
        return pyarrow.parquet.ParquetFile(HfFileSystem().open(path, "rb", cache_type="none"), pre_buffer=True)
    except Exception as error:
        raise _no_hub(path, error) from error


class ParquetShard:
    """The rows of a parquet file, by row group; cells hold encoded images."""

    def __init__(self, path: str, index: np.ndarray, options: FileOptions, groups: RowGroups):
        self._path, self._starts, self._options, self._groups = path, index, options, groups
        self._file = _open_parquet(path)
        caption = options.caption_column
        self._columns = [options.image_column, *([caption] if caption else [])]
        self._classes = class_names(features_of(self._file.schema_arrow).get(caption))

    def image(self, row: int) -> bytes | ImageError:
        cell = self._cell(row, 0)
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes) or len(data) > MAX_BYTES:
            return ImageError("the row holds no image, or one that is too large")
        return data

    def captions(self, row: int) -> tuple[str, ...]:
        if len(self._columns) == 1:
            return ()
        return clean_captions(named(self._cell(row, 1), self._classes), f"{self._path}, row {row}")

    def _cell(self, row: int, column: int) -> Any:
        group = int(np.searchsorted(self._starts, row, "right")) - 1
        table = self._groups.get(self._file, self._path, group, self._columns)
        with readable(self._path):
            return table.column(column)[row - int(self._starts[group])].as_py()
