"""What the names of files and folders say: which text belongs to which image, splits, classes and repeats."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import PurePosixPath

from ldm.formats.optional_decoders import EXTRA_SUFFIXES
from ldm.formats.records import SPLIT_OF, agreed_splits, first_few, printable, split_word

SIDECARS = (".txt", ".caption", ".json")  # in this order; JSON only where the others are silent
TEXTS = frozenset((*SIDECARS, ".csv", ".tsv", ".jsonl", ".parquet", ".tags", ".cap"))
_REPEATS = re.compile(r"(\d{1,3})_(.+)")  # a longer number is a date or an id
_NUMBER = re.compile(r"\d+[_.\s]\s*(?=\D)")


def paired(files: Sequence[str], images: Sequence[str]) -> dict[str, list[str]]:
    """The caption files of each image, "a.txt" and "a.png.txt" for "a.png", in the order of `SIDECARS`.

    Where no image has exactly that name, one does that differs in case or Unicode form alone: IMG_0.JPG, IMG_0.txt.
    """
    exact: dict[str, list[str]] = defaultdict(list)
    folded: dict[str, list[str]] = defaultdict(list)
    for image in images:
        for base in (image, str(PurePosixPath(image).with_suffix(""))):
            exact[base].append(image)
            folded[_folded(base)].append(image)
    pairs: dict[str, list[str]] = defaultdict(list)
    for file in files:
        path = PurePosixPath(file)
        if path.suffix.lower() in SIDECARS:
            base = str(path.with_suffix(""))
            for image in exact.get(base) or folded.get(_folded(base)) or []:
                pairs[image].append(file)
    for beside in pairs.values():
        beside.sort(key=lambda file: SIDECARS.index(PurePosixPath(file).suffix.lower()))
    return pairs


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def twins(images: Sequence[str], pairs: dict[str, list[str]]) -> list[str]:
    """Notes on names that a person or another file system would take for one, or that share a caption file."""
    alike, sharing = defaultdict(list), defaultdict(list)
    for image in images:
        alike[_folded(image)].append(image)
        for file in pairs.get(image, ()):
            sharing[file].append(image)
    kinds = {"differ in nothing but case or Unicode form": alike, "share one caption file": sharing}
    notes = []
    for words, groups in kinds.items():
        same = dict.fromkeys(" = ".join(names) for names in groups.values() if len(names) > 1)
        if same:
            notes.append(f"images whose names {words}: {first_few(list(same))}")
    return notes


def divided(names: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """The split of each image by the first of its folders that is named as one, at any depth; and notes.

    It is only a division where every image lies in one, and some in "train" (see `agreed_splits`).
    """
    words = [next(filter(None, map(_split_of, PurePosixPath(name).parts[:-1])), None) for name in names]
    splits = agreed_splits(words)
    found = {SPLIT_OF[word] for word in words if word}
    notes = []
    if "train" in found and len(found) > 1 and None in words:
        outside = [name for name, word in zip(names, words, strict=True) if word is None]
        notes.append(
            f"the division into {', '.join(sorted(found))} is not kept, as {len(outside)} images lie in none of these "
            f"folders: {first_few(outside)}"
        )
    return splits, notes


def _split_of(folder: str) -> str | None:
    if folder.lower().endswith(".tar"):
        return split_word(folder)
    return folder.lower() if folder.lower() in SPLIT_OF else None


def classes(names: Sequence[str], splits: Sequence[str | None]) -> list[str]:
    """What each image's own folder says of it: "data/train/10_red_apple/1.png" -> "red apple"; "" for nothing.

    Folders that hold all the images, splits and archives are no classes.
    """
    folders = [
        [part for part in PurePosixPath(name).parts[:-1] if not (split and _split_of(part)) and part[-4:] != ".tar"]
        for name, split in zip(names, splits, strict=True)
    ]
    common = _common(folders)
    found = []
    for parts in folders:
        own = parts[-1] if len(parts) > common or (parts and _REPEATS.fullmatch(parts[-1])) else ""
        found.append(" ".join(_NUMBER.sub("", own, count=1).replace("_", " ").split()))
    return found


def _common(folders: list[list[str]]) -> int:
    """How many leading folders all have in common."""
    if not folders:
        return 0
    first, last = min(folders), max(folders)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def repeats(name: str) -> int:
    """How often an epoch has an image, by its folder: "10_fruit/1.png" -> 10; 1 without such a number."""
    numbers = [match for part in PurePosixPath(name).parts[:-1] if (match := _REPEATS.fullmatch(part))]
    return int(numbers[-1][1]) if numbers else 1


def has_repeats(names: Collection[str]) -> bool:
    """Whether all images lie in folders like "10_fruit", and these are not just numbered 0, 1, 2 or 1, 2, 3."""
    folders = {part for name in names for part in PurePosixPath(name).parent.parts[-1:]}
    numbers = sorted(int(match[1]) for folder in folders if (match := _REPEATS.fullmatch(folder)))
    counted = numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))
    return bool(numbers) and len(numbers) == len(folders) and (not counted or numbers == [1])


def left_out(files: Sequence[str]) -> list[str]:
    """A note that counts files by kind, and names those that may hold captions."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for file in files:
        kinds[PurePosixPath(file).suffix.lower() or "no ending"].append(file)
    if not kinds:
        return []
    counts = Counter({kind: len(names) for kind, names in kinds.items()})
    listed = [
        f"{kind} ({count}{': ' + first_few(kinds[kind]) if kind in TEXTS else ''})"
        for kind, count in counts.most_common()
    ]
    ways = sorted(kind for kind in kinds if kind in EXTRA_SUFFIXES and find_spec(EXTRA_SUFFIXES[kind]) is None)
    way = f"; `pip install 'ldm[formats]'` reads {', '.join(ways)}" if ways else ""
    return [printable(f"files left out, by kind: {', '.join(listed)}{way}")]
