"""Images in the rows of parquet files or of a Hub data set."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.config.settings import FileOptions
from ldm.formats.decoding import MAX_BYTES, ImageError
from ldm.formats.records import SPLIT_OF, Sample, agreed_splits, clean_captions, require_column, split_word
from ldm.utils.errors import UserError, redacted

BATCH_ROWS = 64  # rows read at once: few enough that large images fit into memory


class ParquetSource:
    """Rows of parquet files as a `Source`; ids are "row-000123", after the file's name where there are several."""

    def __init__(self, root: Path, files: list[str], options: FileOptions):
        self.notes: list[str] = []
        self.samples: list[Sample] = []
        self._files = [root / name for name in files] if files else [root]
        self._column = options.image_column
        words = [next(filter(None, map(split_word, PurePosixPath(name).parts)), None) for name in files] or [None]
        splits = agreed_splits(words)
        for path, name, split in zip(self._files, files or [""], splits, strict=True):
            prefix = f"{name}/" if len(self._files) > 1 else ""
            for number, captions in enumerate(_parquet_captions(path, options)):
                self.samples.append(Sample(f"{prefix}row-{number:06d}", captions, split))

    def encoded(self) -> Iterator[tuple[int, bytes | ImageError]]:
        index = 0
        for path in self._files:
            for batch in _batches(path, self._column):
                for value in _bytes_of(batch.column(0)):
                    yield index, _picture_bytes(value.as_py(), read_paths=False)
                    index += 1


class HubSource:
    """A data set of the Hub as a `Source`, its own splits kept."""

    def __init__(self, name: str, options: FileOptions):
        from datasets import ClassLabel

        self.notes: list[str] = []
        self.samples: list[Sample] = []
        self._tables = []
        self._column = options.image_column
        parts = _load_from_hub(name, options)
        known = {split: part for split, part in parts.items() if split.lower() in SPLIT_OF}
        if any(SPLIT_OF[split.lower()] == "train" for split in known) and len(known) < len(parts):
            self.notes.append(f"splits left out: {', '.join(sorted(set(parts) - set(known)))}")
            parts = known
        for (word, part), split in zip(parts.items(), agreed_splits(list(parts)), strict=True):
            where = f"{name}, split {word}"
            require_column(self._column, part.column_names, "image", where)
            captions = _hub_captions(part, options, where, ClassLabel)
            self._tables.append(_undecoded(part, self._column, where))
            prefix = f"{word}/" if len(parts) > 1 else ""
            self.samples += [Sample(f"{prefix}row-{i:06d}", texts, split) for i, texts in enumerate(captions)]

    def encoded(self) -> Iterator[tuple[int, bytes | ImageError]]:
        index = 0
        for table in self._tables:
            for row in table:
                yield index, _picture_bytes(row[self._column], read_paths=True)
                index += 1


def open_parquet(path: Path):
    """The `pyarrow.parquet.ParquetFile` at a path.

    Raises: UserError: if it cannot be read.
    """
    import pyarrow.parquet

    with readable(path):
        return pyarrow.parquet.ParquetFile(path)


def _batches(path: Path, column: str) -> Iterator:
    batches = open_parquet(path).iter_batches(BATCH_ROWS, columns=[column])
    while True:
        with readable(path):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@contextmanager
def readable(path: Path):
    """Turn what pyarrow raises about a file, or about a value in it, into a `UserError`."""
    import pyarrow

    try:
        yield
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {path} as parquet: {_one_line(error)}") from error


def _parquet_captions(path: Path, options: FileOptions) -> list[tuple[str, ...]]:
    """Captions of every row, after a check of the columns."""
    file = open_parquet(path)
    columns = file.schema_arrow.names
    require_column(options.image_column, columns, "image", str(path))
    _require_pictures(file.schema_arrow.field(options.image_column).type, options.image_column, path)
    if not options.caption_column:
        return [()] * file.metadata.num_rows
    others = [c for c in columns if c != options.image_column]
    require_column(options.caption_column, others, "caption", str(path))
    with readable(path):
        cells = file.read(columns=[options.caption_column]).column(0).to_pylist()
    return [clean_captions(cell, f"{path}, row {number}") for number, cell in enumerate(cells)]


def _require_pictures(kind, column: str, path: Path) -> None:
    import pyarrow.types as types

    inner = kind
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = kind.field("bytes").type
    if not (types.is_binary(inner) or types.is_large_binary(inner) or types.is_binary_view(inner)):
        raise UserError(
            f"{path}: column {column!r} holds {kind}; images must be encoded files: bytes, or a struct with 'bytes'"
        )


def _bytes_of(column):
    """The column itself, or the field `bytes` of its structs; what else they hold is ignored."""
    import pyarrow.compute

    return pyarrow.compute.struct_field(column, "bytes") if pyarrow.types.is_struct(column.type) else column


def _picture_bytes(value, read_paths: bool) -> bytes | ImageError:
    """Encoded image in a table cell. Paths are followed only in data sets that `datasets` itself laid out."""
    data = value.get("bytes") if isinstance(value, dict) else value
    path = value.get("path") if isinstance(value, dict) else None
    try:
        if data is None and path and read_paths:
            data = Path(path).read_bytes()
    except OSError as error:
        return ImageError((error.strerror or str(error)).lower())
    if data is None:
        return ImageError("the row has no image")
    if len(data) > MAX_BYTES:
        return ImageError(f"the image has more than {MAX_BYTES} bytes")
    return bytes(data)


def _load_from_hub(name: str, options: FileOptions) -> dict:
    """The splits of a Hub data set, by name.

    Raises: UserError: for every failure: no network, no such set, no access, a set that needs a configuration.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(name, revision=options.revision)
    except Exception as error:
        place = redacted(os.environ.get("HF_ENDPOINT", "the Hub"))
        version = f" at revision {options.revision}" if options.revision else ""
        raise UserError(
            f"data.source {name!r} is no file or folder here, and loading it as a data set{version} from {place} "
            f"failed: {redacted(_one_line(error))}; check the name and the network, or download it and give its folder"
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}


def _hub_captions(part, options: FileOptions, where: str, class_label: type[Any]) -> list[tuple[str, ...]]:
    column = options.caption_column
    if not column:
        return [()] * len(part)
    require_column(column, [c for c in part.column_names if c != options.image_column], "caption", where)
    feature = part.features[column]
    cells = list(part[column])
    if isinstance(feature, class_label):  # classes become their names
        cells = [None if cell is None or cell < 0 else feature.int2str(cell) for cell in cells]
    return [clean_captions(cell, f"{where}, row {number}") for number, cell in enumerate(cells)]


def _undecoded(part, column: str, where: str):
    """The image column alone, as stored: decoding is ours, so that one bad image does not end the run."""
    import datasets

    feature = part.features[column]
    if isinstance(feature, datasets.Image):
        return part.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    if getattr(feature, "dtype", None) in ("binary", "large_binary"):
        return part.select_columns([column])
    raise UserError(f"{where}: column {column!r} holds {feature}; it must hold images")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
