"""Images in the rows of parquet files, or of a folder that `Dataset.save_to_disk` wrote."""

import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.config.settings import FileOptions
from ldm.formats.decoding import MAX_BYTES, ImageError
from ldm.formats.records import Sample, agreed_splits, clean_captions, require_column, split_word
from ldm.formats.safe_tree import Files, Folder, reason
from ldm.utils.errors import UserError

BATCH_ROWS = 64  # rows read at once: few enough that large images fit into memory
CAPTION_ROWS = 2**16  # of captions alone
SAVED = ("state.json", "dataset_info.json", "dataset_dict.json")  # what `save_to_disk` writes beside the rows


class TableSource:
    """Rows of parquet or Arrow files as a `Source`; ids are "row-000123", after the file's name if there are several.

    A cell holds an encoded image, or the path of one that lies in the folder.
    """

    def __init__(self, folder: Folder, files: Sequence[str], options: FileOptions):
        self.notes: list[str] = []
        self.captions_from = [f"column {options.caption_column!r}"] if options.caption_column else []
        self.samples: list[Sample] = []
        self.used = set(files)
        self._folder, self._files, self._column = folder, files, options.image_column
        words = [next(filter(None, map(split_word, PurePosixPath(name).parts)), None) for name in files]
        for name, split in zip(files, agreed_splits(words), strict=True):
            try:
                folder.check(name)
            except OSError as error:
                raise UserError(f"cannot read {folder.root / name}: {reason(error)}") from error
            prefix = f"{name}/" if len(files) > 1 else ""
            for number, captions in enumerate(self._captions(folder.root / name, options)):
                self.samples.append(Sample(f"{prefix}row-{number:06d}", captions, split))

    def encoded(self) -> Iterator[tuple[int, bytes | ImageError]]:
        index = 0
        for name in self._files:
            for batch in _batches(self._folder.root / name, self._column, BATCH_ROWS):
                for cell in _cells(batch.column(0)):
                    yield index, self._image(name, *(None if part is None else part.as_py() for part in cell))
                    index += 1

    def read_from(self) -> tuple[list[Path], str]:
        tables = [self._folder.root / name for name in self._files]
        return (tables if all(_holds_bytes(path, self._column) for path in tables) else []), self._column

    def _captions(self, path: Path, options: FileOptions) -> Iterator[tuple[str, ...]]:
        """Captions of every row, after a check of the columns."""
        schema = _schema(path)
        require_column(options.image_column, schema.names, "image", str(path))
        require_images(schema.field(options.image_column).type, options.image_column, path)
        column = options.caption_column
        if not column:
            for batch in _batches(path, options.image_column, BATCH_ROWS):
                yield from [()] * batch.num_rows
            return
        require_column(column, [c for c in schema.names if c != options.image_column], "caption", str(path))
        names = class_names(features_of(schema).get(column))
        if names is None and str(schema.field(column).type).startswith(("int", "uint")):
            self.notes.append(f"{path}: column {column!r} holds numbers without names, and these are the captions")
        number = 0
        for batch in _batches(path, column, CAPTION_ROWS):
            with readable(path):
                cells = batch.column(0).to_pylist()
            for cell in cells:
                yield clean_captions(named(cell, names), f"{path}, row {number}")
                number += 1

    def _image(self, table: str, data: bytes | str | None, path: str | None) -> bytes | ImageError:
        """The encoded image of a cell: its bytes, or the file that it names."""
        if isinstance(data, str):
            data, path = None, data
        if data is not None:
            return bytes(data) if len(data) <= MAX_BYTES else ImageError(f"the image has more than {MAX_BYTES} bytes")
        if not path or not isinstance(path, str):
            return ImageError("the row has no image")
        try:
            return self._folder.read(self._place(table, path), MAX_BYTES)
        except (OSError, ValueError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            return ImageError(f"the row holds no bytes but names {path[:200]}: {why}")

    def _place(self, table: str, path: str) -> str:
        """Where a row's path leads: from the table's own folder, else from the data folder."""
        root = self._folder.root.absolute()
        if os.path.isabs(path):
            if not Path(path).is_relative_to(root):
                raise OSError("outside of the data folder; put the files beside the table")
            return Path(path).relative_to(root).as_posix()
        near = (PurePosixPath(table).parent / path).as_posix()
        return near if os.path.exists(root / near) else path


def saved_files(tree: Files) -> list[str]:
    """The Arrow files of a folder that `Dataset.save_to_disk` wrote, in their order; [] for another folder.

    Raises: UserError: if what it says of itself cannot be read.
    """
    files = []
    for state in (name for name in tree.files if PurePosixPath(name).name == SAVED[0]):
        try:
            parts = json.loads(tree.read(state, 2**24))["_data_files"]
            names = [str(PurePosixPath(state).parent / PurePosixPath(part["filename"]).name) for part in parts]
        except OSError as error:
            raise UserError(f"cannot read {tree.root / state}: {reason(error)}") from error
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # some other program's
        files += [name for name in names if name in tree.files]
    return files


def class_names(feature: Any) -> list[str] | None:
    """The names in a column of class numbers, or of lists of them, from the description that `datasets` gives it."""
    while isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
        feature = feature.get("feature")
    if isinstance(feature, list) and len(feature) == 1:  # a list as `datasets` wrote it before version 4
        return class_names(feature[0])
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        return [str(name) for name in feature["names"]]
    return None


def named(cell: Any, names: list[str] | None) -> Any:
    """A caption cell with names for class numbers; -1, as `datasets` writes what is not known, is nothing."""
    if names is None or cell is None:
        return cell
    if isinstance(cell, list):
        return [named(each, names) for each in cell]
    if isinstance(cell, int) and not isinstance(cell, bool):
        return names[cell] if 0 <= cell < len(names) else None
    return cell


def read_parquet(data: bytes) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of a small table, with names for class numbers. Raises: what pyarrow raises."""
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(io.BytesIO(data)).read()
    names = {column: class_names(feature) for column, feature in features_of(table.schema).items()}
    rows = [{column: named(cell, names.get(column)) for column, cell in row.items()} for row in table.to_pylist()]
    return table.column_names, rows


def features_of(schema) -> dict[str, Any]:
    """How `datasets` describes the columns of a table that it wrote."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _schema(path: Path):
    import pyarrow.parquet

    with readable(path):
        return _open_arrow(path).schema if _is_arrow(path) else pyarrow.parquet.ParquetFile(path).schema_arrow


def _is_arrow(path: Path) -> bool:
    return path.suffix.lower() == ".arrow"


def _open_arrow(path: Path):
    import pyarrow.ipc

    return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))


def _batches(path: Path, column: str, rows: int) -> Iterator:
    """Record batches of one column, at most so many rows each."""
    batches = _arrow_batches(path, column, rows) if _is_arrow(path) else _parquet_batches(path, column, rows)
    while True:
        with readable(path):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _parquet_batches(path: Path, column: str, rows: int) -> Iterator:
    import pyarrow.parquet

    yield from pyarrow.parquet.ParquetFile(path).iter_batches(rows, columns=[column])


def _arrow_batches(path: Path, column: str, rows: int) -> Iterator:
    for batch in _open_arrow(path):
        chosen = batch.select([column])
        chosen.validate(full=True)  # unlike parquet, the file is memory as it lies: its offsets may lead anywhere
        for start in range(0, chosen.num_rows, rows):
            yield chosen.slice(start, rows)


@contextmanager
def readable(path: Path | str):
    """Turn what pyarrow raises about a file, or about a value in it, into a `UserError`."""
    import pyarrow

    try:
        yield
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        kind = "an Arrow file" if _is_arrow(Path(path)) else "parquet"
        raise UserError(f"cannot read {path} as {kind}: {one_line(error)}") from error


def _holds_bytes(path: Path, column: str) -> bool:
    """Whether every cell of an image column certainly holds the image itself, and not the name of a file."""
    import pyarrow.types as types

    kind = _schema(path).field(column).type
    if types.is_struct(kind):
        if kind.get_field_index("bytes") < 0 or not _is_binary(kind.field("bytes").type):
            return False
        return _no_nulls(path, column, f"{column}.bytes")
    return _is_binary(kind) and _no_nulls(path, column, column)


def _no_nulls(path: Path, column: str, leaf: str) -> bool:
    import pyarrow.parquet

    if _is_arrow(path):
        parts = (batch.column(0) for batch in _batches(path, column, CAPTION_ROWS))
        return not any((part if leaf == column else part.field("bytes")).null_count for part in parts)
    with readable(path):
        about = pyarrow.parquet.ParquetFile(path).metadata
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        chunks = [group.column(j) for group in groups for j in range(group.num_columns)]
        counts = [chunk.statistics for chunk in chunks if chunk.path_in_schema == leaf]
        return len(counts) == len(groups) and all(one and one.has_null_count and not one.null_count for one in counts)


def _is_binary(kind) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def require_images(kind, column: str, path: Path | str) -> None:
    import pyarrow.types as types

    inner = kind
    for field in ("path", "bytes"):
        if types.is_struct(kind) and kind.get_field_index(field) >= 0:
            inner = kind.field(field).type
    if not (_is_binary(inner) or types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner)):
        raise UserError(
            f"{path}: column {column!r} holds {kind}; images must be encoded files (bytes, or a struct with 'bytes'), "
            "or the paths of files beside the table"
        )


def _cells(column) -> Iterator[tuple[Any, Any]]:
    """(bytes or text, path) of each row of a column, either may be missing; what else structs hold is ignored."""
    import pyarrow.compute as compute
    import pyarrow.types as types

    if not types.is_struct(column.type):
        return ((value, None) for value in column)
    parts = [
        compute.struct_field(column, name) if column.type.get_field_index(name) >= 0 else [None] * len(column)
        for name in ("bytes", "path")
    ]
    return zip(*parts, strict=True)


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
