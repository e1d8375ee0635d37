"""What folders, parquet files and Hub data sets have in common: samples with ids, captions and, perhaps, splits."""

import difflib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ldm.formats.decoding import ImageError
from ldm.utils.errors import UserError

USUAL_NAMES = {
    "image": ("image", "img", "images", "picture", "png", "jpg", "file_name", "filename", "file", "path"),
    "caption": ("caption", "captions", "text", "prompt", "description", "sentence", "sentences", "title", "label"),
}
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in _SPLIT_NAMES.items() for name in names}


@dataclass(frozen=True)
class Sample:
    """One image: `id` is unique and stable, `captions` are clean, `split` is None where the source is not divided.

    `repeats` is how often training samples it, beside others.
    """

    id: str
    captions: tuple[str, ...] = ()
    split: str | None = None
    repeats: int = 1


class Source(Protocol):
    """Where images come from. `encoded` gives (index, file contents or why there are none), in sample order."""

    samples: list[Sample]
    notes: list[str]  # what a user should know about how the source was read
    captions_from: list[str]  # what was read for captions, in words

    def encoded(self) -> Iterator[tuple[int, bytes | ImageError]]: ...

    def read_from(self) -> tuple[list[Path], str]:
        """The files that `encoded` reads, [] if that is not known, and what else decides what it gives."""
        ...


def clean_caption(text: str) -> str:
    """One line of text: runs of whitespace and control characters become one space, Unicode is composed (NFC).

    Lengths are left alone. Byte order marks and unpaired surrogates go: no tokenizer can take them.
    """
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c == "\ufeff" else c for c in text)
    return " ".join(unicodedata.normalize("NFC", text).split())


def clean_captions(value: Any, where: str) -> tuple[str, ...]:
    """The captions of one image from a table cell: text, number, nothing, or a list of those; empty ones are dropped.

    Raises: UserError: for anything else, naming `where`.
    """
    cells = value if isinstance(value, list | tuple) else [value]
    for cell in cells:
        if cell is not None and not isinstance(cell, str | int | float):
            raise UserError(f"{where}: a caption must be text or a list of texts, got {type(cell).__name__}")
    texts = [clean_caption(str(cell)) for cell in cells if cell is not None and cell == cell]  # NaN is "nothing" too
    return tuple(dict.fromkeys(text for text in texts if text))


def require_column(name: str, columns: Sequence[str], kind: str, where: str) -> str:
    """`name`, if it is one of the columns.

    Raises: UserError: listing the columns, the likeliest first to be tried, and the key to change.
    """
    if name in columns:
        return name
    usual = [column for column in columns if column.lower() in USUAL_NAMES[kind]]
    near = difflib.get_close_matches(name, columns, n=1) or usual
    hint = f"; perhaps {near[0]!r}" if near else ""
    none = ' (or to "" for no captions)' if kind == "caption" else ""
    listed = ", ".join(repr(column) for column in columns) or "no columns"
    raise UserError(
        f"{where} has no {kind} column {name!r}; it has {listed}{hint}: "
        f"set data.files.{kind}_column to one of them{none}"
    )


def agreed_splits(names: Sequence[str | None]) -> list[str | None]:
    """The split of each sample, if the source really is divided; otherwise None for all.

    It is divided when every name stands for a split and one of them for "train". A folder `train/` beside `boat/`
    and `car/` is a kind of vehicle.
    """
    splits = [SPLIT_OF.get(name.lower()) if name else None for name in names]
    return splits if None not in splits and "train" in splits else [None] * len(splits)


def split_word(name: str) -> str | None:
    """The split that a file or folder name begins with: "test-00000-of-00002" -> "test"."""
    word = re.split(r"[-_.\s]", name, maxsplit=1)[0].lower()
    return word if word in SPLIT_OF else None


def first_few(names: Sequence[str], count: int = 3) -> str:
    """ "a, b, c and 7 more": for messages of one line."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return printable(", ".join(name if len(name) <= 200 else f"{name[:200]}..." for name in names[:count])) + more


def printable(text: str) -> str:
    """Text that a terminal shows and does not interpret: a file's name may hold line breaks and escape sequences."""
    return "".join(c if c.isprintable() else "?" for c in text)
