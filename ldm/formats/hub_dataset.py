"""Images in the rows of a data set of the Hub."""

import os
from collections.abc import Iterator
from pathlib import Path

from ldm.config.settings import FileOptions
from ldm.formats.decoding import MAX_BYTES, ImageError
from ldm.formats.records import SPLIT_OF, Sample, agreed_splits, clean_captions, require_column
from ldm.formats.safe_tree import reason
from ldm.formats.tables import class_names, named, one_line
from ldm.utils.errors import UserError, redacted


class HubSource:
    """A data set of the Hub as a `Source`, its own splits kept."""

    def __init__(self, name: str, options: FileOptions):
        self.notes: list[str] = []
        self.captions_from = [f"column {options.caption_column!r}"] if options.caption_column else []
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
            captions = _captions(part, options, where)
            self._tables.append(_undecoded(part, self._column, where))
            prefix = f"{word}/" if len(parts) > 1 else ""
            self.samples += [Sample(f"{prefix}row-{i:06d}", texts, split) for i, texts in enumerate(captions)]

    def encoded(self) -> Iterator[tuple[int, bytes | ImageError]]:
        index = 0
        for table in self._tables:
            for row in table:
                yield index, _encoded(row[self._column])
                index += 1

    def read_from(self) -> tuple[list[Path], str]:
        return [Path(file["filename"]) for table in self._tables for file in table.cache_files], self._column


def _encoded(value) -> bytes | ImageError:
    """The encoded image of a cell; `datasets` itself put the files there that have paths."""
    data = value.get("bytes") if isinstance(value, dict) else value
    path = value.get("path") if isinstance(value, dict) else None
    try:
        if data is None and path:
            data = Path(path).read_bytes()
    except OSError as error:
        return ImageError(reason(error))
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
            f"failed: {redacted(one_line(error))}; check the name and the network, or download it and give its folder"
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}


def _captions(part, options: FileOptions, where: str) -> list[tuple[str, ...]]:
    column = options.caption_column
    if not column:
        return [()] * len(part)
    require_column(column, [c for c in part.column_names if c != options.image_column], "caption", where)
    names = class_names(part.features.to_dict()[column])
    return [clean_captions(named(cell, names), f"{where}, row {i}") for i, cell in enumerate(part[column])]


def _undecoded(part, column: str, where: str):
    """The image column alone, as stored: decoding is ours, so that one bad image does not end the run."""
    import datasets

    feature = part.features[column]
    if isinstance(feature, datasets.Image):
        return part.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    if getattr(feature, "dtype", None) in ("binary", "large_binary"):
        return part.select_columns([column])
    raise UserError(f"{where}: column {column!r} holds {feature}; it must hold images")
