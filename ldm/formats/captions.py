"""Captions in text files: those beside an image, and tables that name images, as CSV, JSON Lines or parquet."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from ldm.config.settings import FileOptions
from ldm.formats.records import clean_captions, require_column
from ldm.formats.safe_tree import Files, reason
from ldm.utils.errors import UserError

METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
CAPTIONS = ("captions.csv", "captions.tsv", "captions.jsonl")  # as METADATA, but images they do not name stay
NAME_COLUMN = "file_name"
MAX_CAPTION_BYTES = 2**20  # of a caption file beside an image
MAX_TABLE_BYTES = 2**31

Rows = tuple[list[str], list[dict[str, Any]]]  # the columns, and what each row has in them


def decoded(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 with a mark. Raises: ValueError: naming the offset of what is neither."""
    marked = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = data.decode("utf-16" if marked else "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not {'UTF-16' if marked else 'UTF-8'} (byte {error.start}): "
            "convert it, for example by `iconv -f GB18030 -t UTF-8` (or -f BIG5)"
        ) from error
    if "\0" in text:
        raise ValueError(f"not UTF-8 but perhaps UTF-16 or UTF-32 (NUL at character {text.index(chr(0))})")
    return text


def sidecar_captions(files: Files, name: str, options: FileOptions) -> tuple[str, ...]:
    """The captions in a file beside an image: each line one, or of a JSON object the value of the caption column.

    Raises: OSError, or ValueError: if the file cannot be read.
    """
    return captions_in(files.read(name, MAX_CAPTION_BYTES), name, options)


def captions_in(data: bytes, name: str, options: FileOptions) -> tuple[str, ...]:
    """The captions in the contents of a file of this name, as `sidecar_captions`. Raises: ValueError."""
    text = decoded(data)
    if not name.lower().endswith(".json"):
        return clean_captions(text.replace("\r", "\n").split("\n"), name)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return ()  # most JSON beside images is no caption
    value = document.get(options.caption_column) if isinstance(document, dict) else None
    return clean_captions(value, name) if isinstance(value, str | list) else ()


def table_rows(files: Files, file: str, options: FileOptions) -> list[tuple[str, tuple[str, ...]]]:
    """(file name, captions) of every row of a table.

    Raises: UserError: in one line, for what is wrong with it.
    """
    table = files.root / file
    try:
        data = files.read(file, MAX_TABLE_BYTES)
        columns, rows = READERS[PurePosixPath(file).suffix.lower()](data, str(table))
    except ValueError as error:
        raise UserError(f"{table} is {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {table}: {reason(error)}") from error
    if not rows:
        raise UserError(f"{table} has no rows: name one image a row, or remove the file to use the folder as it is")
    twice = [column for column in dict.fromkeys(columns) if columns.count(column) > 1]
    if twice:
        raise UserError(f"{table} has the column {twice[0]!r} more than once: rename or remove one")
    name_column = NAME_COLUMN if NAME_COLUMN in columns else options.image_column
    if name_column not in columns:
        require_column(
            options.image_column, columns, "image", f"{table} has no column {NAME_COLUMN!r} of names, and it"
        )
    caption_column = options.caption_column
    if caption_column:
        require_column(caption_column, [c for c in columns if c != name_column], "caption", str(table))
    pairs = []
    for number, row in enumerate(rows, start=1):
        name = row.get(name_column)
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{table}: row {number} has no {name_column}")
        texts = clean_captions(row.get(caption_column), f"{table}, row {number}") if caption_column else ()
        pairs.append((inside(str(PurePosixPath(file).parent), name.strip(), str(table), name_column), texts))
    return pairs


def inside(parent: str, name: str, table: str, column: str) -> str:
    """An image's path relative to the root.

    Raises: UserError: if the name is absolute or leads out of the folder of its table.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise UserError(f"{table}: {column} {name!r} leads out of the folder; names must be relative, without '..'")
    return str(PurePosixPath(parent) / path)


def _read_csv(data: bytes, table: str) -> Rows:
    text = decoded(data)
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)  # a comma where there is none of them
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        columns = list(reader.fieldnames or [])
        rows = []
        for row in reader:
            if None in row:  # the commonest slip: a comma in a caption without quotes
                raise UserError(f"{table}, line {reader.line_num}: more fields than columns; quote texts with commas")
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{table}, line {reader.line_num}: {error}") from error
    return columns, rows


def _read_jsonl(data: bytes, table: str) -> Rows:
    rows = []
    for number, line in enumerate(decoded(data).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{table}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{table}, line {number}: each line must be a JSON object, got {type(row).__name__}")
        rows.append(row)
    return list(dict.fromkeys(key for row in rows for key in row)), rows


def _read_parquet(data: bytes, table: str) -> Rows:
    from ldm.formats.tables import read_parquet, readable

    with readable(table):
        return read_parquet(data)


READERS: dict[str, Callable[[bytes, str], Rows]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
