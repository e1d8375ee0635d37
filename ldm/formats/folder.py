"""The images of a folder or of tar archives, with captions in a table, beside each image, in folder names, or none.

Nothing is ever written to the folder, renamed or deleted, and archives are not unpacked.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ldm.config.settings import FileOptions
from ldm.formats import layout
from ldm.formats.captions import CAPTIONS, METADATA, NAME_COLUMN, sidecar_captions, table_rows
from ldm.formats.decoding import MAX_BYTES, SUFFIXES, ImageError
from ldm.formats.optional_decoders import extra_suffixes
from ldm.formats.records import Sample, first_few
from ldm.formats.safe_tree import Files, reason
from ldm.utils.errors import UserError

Captions = dict[str, tuple[str, ...]]  # of the images by name


class FolderSource:
    """The images of a folder as a `Source`; ids are paths relative to the folder, with forward slashes."""

    def __init__(self, files: Files, options: FileOptions):
        self._files, self._options, self.root = files, options, files.root
        self._faults: dict[str, str] = {}
        self.notes: list[str] = []
        self.captions_from: list[str] = []
        images = [name for name in files.files if is_image(name)]
        self.used = set(images)  # the files that are read, or that another note names
        tables = self._tables(METADATA)
        captions = self._from_tables(tables, images) if tables else self._from_sidecars(images)
        if files.strays:
            self.notes.append(f"links that lead out of the folder are left out: {first_few(files.strays)}")
        ids = sorted(captions)
        splits, notes = layout.divided(ids)
        self.notes += notes
        self._add_classes(captions, layout.classes(ids, splits), ids)
        self._offer(captions)
        times = layout.repeats if options.repeats else lambda name: 1
        self.samples = [Sample(n, captions[n], split, times(n)) for n, split in zip(ids, splits, strict=True)]

    def encoded(self) -> Iterator[tuple[int, bytes | ImageError]]:
        for index, sample in enumerate(self.samples):
            yield index, self.read(sample.id)

    def read_from(self) -> tuple[list[Path], str]:
        return self._files.paths(sample.id for sample in self.samples), json.dumps(self._faults)

    def read(self, name: str) -> bytes | ImageError:
        """The contents of an image's file, or why it cannot be used."""
        if name in self._faults:
            return ImageError(self._faults[name])
        try:
            return self._files.read(name, MAX_BYTES)
        except OSError as error:
            return ImageError(reason(error))

    def _tables(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in self._files.files if PurePosixPath(name).name.lower() in names]

    def _from_tables(self, tables: list[str], images: list[str]) -> Captions:
        """The images that tables name, and no others."""
        parents = [str(PurePosixPath(table).parent) for table in tables]
        if len(set(parents)) < len(parents):
            raise UserError(f"{self.root} has more than one metadata file in a folder ({', '.join(tables)}): keep one")
        captions: Captions = {}
        for table in tables:
            for name, texts in table_rows(self._files, table, self._options):
                # an image named twice has two captions
                captions[name] = tuple(dict.fromkeys(captions.get(name, ()) + texts))
        missing = [name for name in captions if not self._files.exists(name)]
        if missing:
            raise UserError(
                f"{first_few(tables)} in {self.root} names {len(missing)} files that do not exist: "
                f"{first_few(missing)}; fix the {NAME_COLUMN} column or add the files"
            )
        self.used.update(tables)
        self.captions_from += tables if self._options.caption_column else []
        self.notes += layout.twins(images, {})
        unlisted = len(set(images) - set(captions))
        if unlisted:
            self.notes.append(f"images left out, as {first_few(tables)} does not name them: {unlisted}")
        return captions

    def _from_sidecars(self, images: list[str]) -> Captions:
        """All images, with what is beside them, and in captions.csv."""
        if not self._options.caption_column:
            self.notes += layout.twins(images, {})
            return dict.fromkeys(images, ())
        pairs = layout.paired(self._files.files, images)
        self.notes += layout.twins(images, pairs)
        captions = {name: self._beside(name, pairs.get(name, [])) for name in images}
        if any(captions.values()):
            kinds = {PurePosixPath(file).suffix.lower() for beside in pairs.values() for file in self.used & {*beside}}
            self.captions_from.append(f"{' and '.join(sorted(kinds))} files beside the images")
        if several := sum(len(lines) > 1 for lines in captions.values()):
            self.notes.append(
                f"images with several lines beside them: {several}; each line is a caption, one is drawn per look"
            )
        for table in self._tables(CAPTIONS):
            self._add_table(captions, table)
        return captions

    def _beside(self, name: str, files: list[str]) -> tuple[str, ...]:
        """The lines of the caption files beside an image, each a caption."""
        captions: tuple[str, ...] = ()
        for file in files:
            suffix = PurePosixPath(file).suffix.lower()
            if suffix == ".json" and captions:
                continue
            try:
                found = sidecar_captions(self._files, file, self._options)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                words = f"cannot be read: {reason(error)}" if isinstance(error, OSError) else f"is {error}"
                self._faults[name] = f"its {suffix} caption {words}"
                self.used.add(file)
                return ()
            if found or suffix != ".json":
                self.used.add(file)
            captions += found
        return tuple(dict.fromkeys(captions))

    def _add_table(self, captions: Captions, table: str) -> None:
        """Captions for images that have none, from a table; one that cannot be used is only noted."""
        try:
            rows = table_rows(self._files, table, self._options)
        except UserError as error:
            self.notes.append(f"not used: {error}")
            self.used.add(table)
            return
        found: Captions = {}
        for name, texts in rows:
            found[name] = found.get(name, ()) + texts
        unknown = [name for name in found if name not in captions]
        if unknown:
            self.notes.append(f"{table} names {len(unknown)} files that are no images here: {first_few(unknown)}")
        if len(unknown) < len(found):
            self.used.add(table)
            self.captions_from.append(table)
        for name in found.keys() & captions.keys():
            captions[name] = captions[name] or tuple(dict.fromkeys(found[name]))

    def _add_classes(self, captions: Captions, classes: list[str], ids: list[str]) -> None:
        """Names of folders as captions, or the advice to take them."""
        if not self._options.caption_column:
            return
        if self._options.class_captions:
            self.captions_from.append("names of folders")
            for name, words in zip(ids, classes, strict=True):
                captions[name] = captions[name] or ((words,) if words else ())
        elif not any(captions.values()) and all(classes):
            names = sorted(set(classes))
            self.notes.append(
                f"there are no captions, but {len(names)} named folders ({first_few(names)}): "
                "data.files.class_captions true takes the names as captions"
            )

    def _offer(self, captions: Captions) -> None:
        """What other trainers would do with this folder, and the setting that does it here."""
        if layout.has_repeats(captions) and not self._options.repeats:
            self.notes.append(
                "folders are numbered as kohya's repeats, which are not used: "
                "data.files.repeats true samples 10_name ten times as often as 1_name"
            )
        if not self._options.shuffle_tags and _are_tags(captions):
            self.notes.append(
                "captions are lists of tags, used as they stand: data.files.shuffle_tags true shuffles them at each use"
            )


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image that can be decoded here."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in SUFFIXES or suffix in extra_suffixes()


def _are_tags(captions: Captions) -> bool:
    """Whether most captions are four or more short pieces between commas."""
    texts = [text.split(",") for lines in captions.values() for text in lines]
    lists = [tags for tags in texts if len(tags) > 3 and sum(len(tag.split()) for tag in tags) <= 3 * len(tags)]
    return len(lists) * 2 > len(texts)
