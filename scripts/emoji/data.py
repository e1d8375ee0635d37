"""The folder that `scripts/build_emoji.py` writes, read back: images and what is known of each."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data import evenly_spaced_indices
from ldm.utils.errors import UserError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Emoji:
    """One image and its facts."""

    path: Path
    name: str  # "red-apple"
    group: str  # "food"
    style: str  # "noto"
    captions: tuple[str, ...]

    @property
    def named_group(self) -> list[bool]:
        """Which of the captions name the group."""
        return [self.group in (part.strip() for part in caption.split(",")) for caption in self.captions]

    @property
    def named_style(self) -> list[bool]:
        """Which of the captions name the style."""
        return [self.style in caption.split() for caption in self.captions]


@dataclass(frozen=True)
class EmojiSet:
    """All of the folder, by split, and what heldout.json says of pairs."""

    splits: dict[str, list[Emoji]]
    shapes: list[str]
    colours: list[str]
    held_out_pairs: set[tuple[str, str]]  # (shape, colour)

    @property
    def everything(self) -> list[Emoji]:
        return [emoji for split in self.splits.values() for emoji in split]

    @property
    def styles(self) -> list[str]:
        return sorted({emoji.style for emoji in self.everything})

    @property
    def groups(self) -> list[str]:
        return sorted({emoji.group for emoji in self.everything})


def read_set(folder: Path) -> EmojiSet:
    """Read the facts, not the images. Raises: UserError: it is no such folder."""
    try:
        held_out = json.loads((folder / "heldout.json").read_text(encoding="utf-8"))
        splits = {split: _read_split(folder / split) for split in SPLITS}
        pairs = {(shape, colour) for shape, colour in held_out["pairs"]}
        return EmojiSet(splits, held_out["shapes"], held_out["colours"], pairs)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} is no emoji set ({type(error).__name__}: {error}): make one with scripts/build_emoji.py"
        ) from error


def _read_split(folder: Path) -> list[Emoji]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Emoji(folder / row["file_name"], row["name"], row["group"], row["style"], tuple(row["text"])) for row in rows
    ]


def images_of(emoji: list[Emoji], size: int = 64) -> np.ndarray:
    """uint8 (n, size, size, 3); images of another size are scaled to it."""
    images = []
    for each in emoji:
        with Image.open(each.path) as image:
            small = image.convert("RGB")
        box = Image.Resampling.BOX if size <= small.width else Image.Resampling.BICUBIC
        images.append(np.asarray(small if small.size == (size, size) else small.resize((size, size), box)))
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)


def some(emoji: list[Emoji], limit: int) -> list[Emoji]:
    """At most `limit`, evenly chosen in the order of names, so that every style and group is among them."""
    order = sorted(emoji, key=lambda each: (each.name, each.style))
    return [order[int(i)] for i in evenly_spaced_indices(len(order), limit)] if order else []
