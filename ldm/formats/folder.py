"""A folder of images with metadata.csv, metadata.jsonl or metadata.parquet, with .txt sidecars, or without captions.

Nothing is ever written to the folder, renamed or deleted.
"""

import csv
import io
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from ldm.config.settings import FileOptions
from ldm.formats.decoding import MAX_BYTES, SUFFIXES, ImageError
from ldm.formats.records import Sample, agreed_splits, clean_captions, first_few, require_column
from ldm.formats.safe_tree import Tree, reason
from ldm.utils.errors import UserError

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NAME_COLUMN = "file_name"
MAX_CAPTION_BYTES = 2**20  # of a .txt file beside an image


class FolderSource:
    """The images of a folder as a `Source`; ids are paths relative to the folder, with forward slashes."""

    def __init__(self, tree: Tree, options: FileOptions):
        self._tree, self.root = tree, tree.root
        self._faults: dict[str, str] = {}
        tables = [name for name in tree.files if PurePosixPath(name).name.lower() in METADATA]
        pictures = [name for name in tree.files if PurePosixPath(name).suffix.lower() in SUFFIXES]
        self.notes = _twins(pictures, has_sidecars=bool(options.caption_column and not tables))
        if tree.strays:
            self.notes.append(f"links that lead out of the folder are left out: {first_few(tree.strays)}")
        if tables:
            captions = self._from_tables(tables, options)
            unlisted = len(set(pictures) - set(captions))
            if unlisted:
                self.notes.append(f"{unlisted} images are not named in {first_few(tables)} and are left out")
        else:
            captions = self._from_sidecars(pictures, options)
        ids = sorted(captions)
        tops = [PurePosixPath(name).parts[0] if "/" in name else None for name in ids]
        splits = agreed_splits(tops)
        self.samples = [Sample(name, captions[name], split) for name, split in zip(ids, splits, strict=True)]

    def encoded(self) -> Iterator[tuple[int, bytes | ImageError]]:
        for index, sample in enumerate(self.samples):
            yield index, self._read(sample.id)

    def _read(self, name: str) -> bytes | ImageError:
        if name in self._faults:
            return ImageError(self._faults[name])
        try:
            return self._tree.read(name, MAX_BYTES)
        except OSError as error:
            return ImageError(reason(error))

    def _from_tables(self, tables: list[str], options: FileOptions) -> dict[str, tuple[str, ...]]:
        parents = [str(PurePosixPath(table).parent) for table in tables]
        if len(set(parents)) < len(parents):
            raise UserError(f"{self.root} has more than one metadata file in a folder ({', '.join(tables)}): keep one")
        captions: dict[str, tuple[str, ...]] = {}
        missing = []
        for table, parent in zip(tables, parents, strict=True):
            for name, texts in _rows(self._tree, table, options):
                picture = _inside(parent, name, self.root / table)
                if not os.path.exists(self.root / picture):  # Path.exists raises for a name that is too long
                    missing.append(picture)
                # an image named twice has two captions
                captions[picture] = tuple(dict.fromkeys(captions.get(picture, ()) + texts))
        if missing:
            raise UserError(
                f"{first_few(tables)} in {self.root} names {len(missing)} files that do not exist: "
                f"{first_few(missing)}; fix the {NAME_COLUMN} column or add the files"
            )
        return captions

    def _from_sidecars(self, pictures: list[str], options: FileOptions) -> dict[str, tuple[str, ...]]:
        captions = {name: self._sidecar(name) if options.caption_column else () for name in pictures}
        if several := sum(len(lines) > 1 for lines in captions.values()):
            self.notes.append(f"{several} .txt files have several lines: each line is a caption, one is drawn per look")
        return captions

    def _sidecar(self, name: str) -> tuple[str, ...]:
        """The lines of the .txt file beside the image, each a caption; an image without one has none."""
        beside = str(PurePosixPath(name).with_suffix(".txt"))
        try:
            lines = _decoded(self._tree.read(beside, MAX_CAPTION_BYTES)).replace("\r", "\n").split("\n")
        except FileNotFoundError:
            return ()
        except OSError as error:
            self._faults[name] = f"its .txt caption cannot be read: {reason(error)}"
            return ()
        except ValueError as error:
            self._faults[name] = f"its .txt caption is {error}"
            return ()
        return clean_captions(lines, name)


def _twins(pictures: list[str], has_sidecars: bool) -> list[str]:
    """Notes on names that a person or another file system would take for one, or that share one .txt caption."""
    kinds: list[tuple[str, Callable[[str], str]]] = [
        ("differ in nothing but case or Unicode form", lambda name: unicodedata.normalize("NFC", name).casefold())
    ]
    if has_sidecars:
        kinds.append(("share one .txt caption", lambda name: str(PurePosixPath(name).with_suffix(""))))
    notes = []
    for words, key in kinds:
        groups = defaultdict(list)
        for name in pictures:
            groups[key(name)].append(name)
        alike = [" = ".join(names) for names in groups.values() if len(names) > 1]
        if alike:
            notes.append(f"images whose names {words}: {first_few(alike)}")
    return notes


def _decoded(data: bytes) -> str:
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


def _inside(parent: str, name: str, table: Path) -> str:
    """The image's path relative to the root.

    Raises: UserError: if the name is absolute or leads out of the folder of its metadata file.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise UserError(
            f"{table}: {NAME_COLUMN} {name!r} leads out of the folder; names must be relative, without '..'"
        )
    return str(PurePosixPath(parent) / path)


def _rows(tree: Tree, file: str, options: FileOptions) -> list[tuple[str, tuple[str, ...]]]:
    """(file name, captions) of every row of a metadata file."""
    table = tree.root / file
    try:
        tree.check(file)
        reader = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[table.suffix.lower()]
        columns, rows = reader(table)
    except ValueError as error:
        raise UserError(f"{table} is {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {table}: {reason(error)}") from error
    if not rows:
        raise UserError(f"{table} has no rows: name one image a row, or remove the file to use the folder as it is")
    twice = [column for column in dict.fromkeys(columns) if columns.count(column) > 1]
    if twice:
        raise UserError(f"{table} has the column {twice[0]!r} more than once: rename or remove one")
    name_column = NAME_COLUMN
    if NAME_COLUMN not in columns and options.image_column in columns:
        name_column = options.image_column
    if name_column not in columns:
        listed = ", ".join(repr(column) for column in columns)
        raise UserError(f"{table} has no column {NAME_COLUMN!r} with the images' names; it has {listed}")
    caption_column = options.caption_column
    if caption_column:
        require_column(caption_column, [c for c in columns if c != name_column], "caption", str(table))
    pairs = []
    for number, row in enumerate(rows, start=1):
        name = row.get(name_column)
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{table}: row {number} has no {name_column}")
        texts = clean_captions(row.get(caption_column), f"{table}, row {number}") if caption_column else ()
        pairs.append((name.strip(), texts))
    return pairs


def _read_csv(path: Path) -> tuple[list[str], list[dict]]:
    reader = csv.DictReader(io.StringIO(_decoded(path.read_bytes()), newline=""), strict=True)
    try:
        columns = list(reader.fieldnames or [])
        rows = []
        for row in reader:
            if None in row:  # the commonest slip: a comma in a caption without quotes
                raise UserError(f"{path}, line {reader.line_num}: more fields than columns; quote texts with commas")
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
    return columns, rows


def _read_jsonl(path: Path) -> tuple[list[str], list[dict]]:
    rows = []
    for number, line in enumerate(_decoded(path.read_bytes()).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: each line must be a JSON object, got {type(row).__name__}")
        rows.append(row)
    return list(dict.fromkeys(key for row in rows for key in row)), rows


def _read_parquet(path: Path) -> tuple[list[str], list[dict]]:
    from ldm.formats.tables import open_parquet, readable

    with readable(path):
        table = open_parquet(path).read()
    return table.column_names, table.to_pylist()
