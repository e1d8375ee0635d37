"""The glyph data set: 20,613 Chinese characters with English captions, drawn in one or more styles.

The table (`assets/glyphs.tsv.xz`, made by scripts/build_glyph_table.py) has a row for each CJK Unified Ideograph and
Extension A character that Unihan defines in English.

**The split** is by character and fixed: all styles of a character are on one side, whatever the options.

- `heldout`: every character whose (radical, layout) pair is in `HELD_OUT` of `ldm.data.glyphs.heldout`, and with
  `data.glyphs.hold_out_later` those of its `LATER` that would else be in `train`. Radical and layout both occur in
  training, their combination never.
- Otherwise, with u = the first 8 bytes of sha256("ldm glyph U+XXXX") as a fraction of 2^64: `test` for u < 0.05,
  `validation` for u < 0.10, `train` for the rest.

Within a split the order is that of a second hash, so `limit` keeps the same first N characters everywhere; the other
splits then shrink in proportion, to at least 16.
"""

import hashlib
import io
import lzma
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from ldm.config.settings import DataOptions
from ldm.data.glyphs.captions import (
    PLACE_PHRASES,
    RADICALS,
    STRUCTURES,
    GlyphCaptions,
    layout_phrase,
    radical_phrase,
    strokes_phrase,
)
from ldm.data.glyphs.heldout import HELD_OUT, LATER
from ldm.data.glyphs.names import caption_slots, named_parts, radical_place
from ldm.data.glyphs.recombination import RecombinedGlyphs, composition
from ldm.data.glyphs.rendering import cached_glyphs, style_font
from ldm.utils.errors import UserError

SPLITS = ("train", "validation", "test", "heldout")
SMALLEST = 16  # characters in a split that `limit` shrinks


@dataclass(frozen=True, slots=True)
class Glyph:
    """One character of the table."""

    codepoint: int
    radical: int  # Kangxi, 1..214
    strokes: int
    common: bool  # in GB 2312
    structure: str  # a key of captions.STRUCTURES
    senses: tuple[str, ...]  # short lower-case English meanings fit for a prompt; may be empty

    @property
    def char(self) -> str:
        return chr(self.codepoint)


@cache
def load_table() -> tuple[Glyph, ...]:
    """Return all rows, in code point order."""
    data = lzma.decompress(resources.files("ldm.data").joinpath("assets/glyphs.tsv.xz").read_bytes())
    lines = io.StringIO(data.decode("utf-8"))
    next(lines)  # the heading
    return tuple(_parse(line.rstrip("\n").split("\t")) for line in lines)


def _parse(cells: list[str]) -> Glyph:
    codepoint, radical, strokes, common, structure, senses = cells
    meanings = tuple(senses.split("; ")) if senses else ()
    return Glyph(int(codepoint, 16), int(radical), int(strokes), common == "1", structure, meanings)


def describe(row: Glyph, positions: bool = True) -> str:
    """A prompt for a character: by both parts with `positions` where they have names, else by radical and a meaning."""
    head, strokes = layout_phrase(row.structure), strokes_phrase(row.strokes)
    parts = named_parts(row.char, row)
    if positions and len(parts) == 2:  # no meaning: with one, some prompts would be too long
        return ", ".join([head, *(f"{name} {PLACE_PHRASES[place][0]}" for name, place in parts), strokes])
    meaning = [f"meaning {row.senses[0]}"] if row.senses else []
    return ", ".join([f"{head} {radical_phrase(row.radical)}", *meaning, strokes])


def _fraction(codepoint: int, purpose: str) -> float:
    digest = hashlib.sha256(f"ldm {purpose} U+{codepoint:04X}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(glyph: Glyph, later: bool = False) -> str:
    """Return the split a character belongs to, by the rule in the module's docstring; `later` holds out `LATER` too."""
    pair = (glyph.radical, glyph.structure)
    u = _fraction(glyph.codepoint, "glyph")
    if pair in HELD_OUT or (later and pair in LATER and u >= 0.10):
        return "heldout"
    return "test" if u < 0.05 else "validation" if u < 0.10 else "train"


@cache
def _full_splits(later: bool) -> dict[str, tuple[Glyph, ...]]:
    rows = sorted(load_table(), key=lambda row: _fraction(row.codepoint, "order"))
    sides = [split_of(row, later) for row in rows]
    return {name: tuple(row for row, side in zip(rows, sides, strict=True) if side == name) for name in SPLITS}


def split_characters(characters: str = "all", limit: int = 0, later: bool = False) -> dict[str, list[Glyph]]:
    """Return the characters of each split, in the fixed shuffled order.

    Args:
        characters: "all", or "common" for those in GB 2312.
        limit: keep the first `limit` training characters, and as large a part of each other split (at least 16);
            0 = all.
        later: hold out the pairs of `LATER` too.
    """
    splits = {
        name: [row for row in members if characters == "all" or row.common]
        for name, members in _full_splits(later).items()
    }
    if limit:
        share = min(1.0, limit / len(splits["train"]))
        for name, members in splits.items():
            keep = limit if name == "train" else max(SMALLEST, round(share * len(members)))
            splits[name] = members[:keep]
    return splits


def splits(options: DataOptions) -> dict[str, "GlyphData"]:
    """Return train, validation, test and heldout, rendering what the cache lacks.

    Characters that a font cannot draw (seen by their pixels) are left out of that style and logged.
    Raises: UserError: no font package, unreadable font, unwritable cache, or a split that comes out empty.
    """
    glyphs = options.glyphs
    if options.channels == 4:
        raise UserError(
            "glyphs are black on white: data.channels must be 1 or 3, got 4 (transparent images of your own)"
        )
    splits = split_characters(glyphs.characters, glyphs.limit, glyphs.hold_out_later)
    every = sorted(row.codepoint for members in splits.values() for row in members)
    place = {codepoint: i for i, codepoint in enumerate(every)}
    fonts = {"own": glyphs.font_file} if glyphs.font_file else {style: style_font(style) for style in glyphs.styles}
    text = "".join(map(chr, every))
    files, bad = {}, {}
    for style, font in fonts.items():
        folder, indices = cached_glyphs(font, text, options.size[0], options.cache_dir)
        files[style], bad[style] = folder / "images.npy", set(indices)
    data = {}
    for name, members in splits.items():
        items = [
            (row, style, place[row.codepoint])
            for row in members
            for style in fonts
            if place[row.codepoint] not in bad[style]
        ]
        if not items:
            raise UserError(
                f"the font draws no character of the {name} split: raise data.glyphs.limit or change the font"
            )
        data[name] = GlyphData(items, files, options)
    return data


def mixture(options: DataOptions, train: "GlyphData") -> RecombinedGlyphs | None:
    """Recombined glyphs of the training split, by `data.glyphs.recombined`."""
    if not options.glyphs.recombined:
        return None
    unseen = (row for row in load_table() if split_of(row, options.glyphs.hold_out_later) != "train")
    others = frozenset(filter(None, map(composition, unseen)))
    return RecombinedGlyphs(train, GlyphCaptions(options.glyphs.captions), options.glyphs.recombined, others)


class GlyphData:
    """One split: every character in every style. Holds file names, not pictures: workers share one memory map."""

    has_captions = True

    def __init__(self, items: list[tuple[Glyph, str, int]], files: dict[str, Path], options: DataOptions):
        """`items`: (character, style, index of its picture in that style's file)."""
        self.items = items
        self.files = files
        self.channels: int = options.channels
        self.resolution = options.size[0]
        self.captions = GlyphCaptions(options.glyphs.captions)
        self.balance = options.glyphs.balance
        self.ids = [f"U+{row.codepoint:04X}/{style}" for row, style, _ in items]
        self._maps: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_maps": {}}  # a pickled memory map would carry all pixels

    def __len__(self) -> int:
        return len(self.items)

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides the pixels: the cache keys (font, characters, size, renderer), order, channels."""
        keys = [f"{style}={path.parent.name}" for style, path in self.files.items()]
        return hashlib.sha256("\n".join([*keys, str(self.channels), *self.ids]).encode()).hexdigest()

    @property
    def weights(self) -> np.ndarray | None:
        """How often to draw each item, float64 (n,) of sum 1, by `data.glyphs.balance`; None = all alike."""
        if not self.balance:
            return None
        keys = [f"{row.radical} {row.structure}" for row, _, _ in self.items]
        _, index, counts = np.unique(keys, return_inverse=True, return_counts=True)
        weights = counts[index].astype(np.float64) ** -self.balance
        return weights / weights.sum()

    def image(self, i: int) -> np.ndarray:
        """Return uint8 (resolution, resolution, channels): white ground 255, black ink 0."""
        _, style, index = self.items[i]
        if style not in self._maps:
            self._maps[style] = np.load(self.files[style], mmap_mode="r", allow_pickle=False)
        return np.repeat(self._maps[style][index][..., None], self.channels, axis=-1)

    @property
    def caption_slots(self) -> dict[str, tuple[str, str]]:
        """See `ldm.data.glyphs.names.caption_slots`."""
        return caption_slots()

    def caption(self, i: int, rng: np.random.Generator) -> str:
        """Return one caption drawn anew; never empty."""
        row, style, _ = self.items[i]
        return self.captions.caption(row, style, rng, named_parts(row.char, row), radical_place(row.char, row))

    def meta(self, i: int) -> dict:
        """Return what is known of sample i, for evaluation and publishing."""
        row, style, _ = self.items[i]
        return {
            "char": row.char,
            "codepoint": f"U+{row.codepoint:04X}",
            "structure": row.structure,
            "structure_symbol": STRUCTURES[row.structure][0],
            "radical": row.radical,
            "radical_name": RADICALS[row.radical - 1],
            "strokes": row.strokes,
            "definition": "; ".join(row.senses),
            "style": style,
            "common": row.common,
        }
