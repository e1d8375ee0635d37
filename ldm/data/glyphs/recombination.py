"""New glyphs from the parts of real ones: two components that never met, beside, above or around each other.

A component has its usual place in real characters, and a network learns the place along with it. Here the image of a
training character that falls into two parts is cut at the only blank lane through it, and pieces of different
characters are put together in places drawn alike for every component, each in the form it has there: a piece from the
same place where there are any, else the component's character itself (扌 stands at the left, 手 anywhere else). What
encloses stays as it is in a real character, with another component in its hole.

Held out stays held out (`ldm.data.glyphs.heldout`): a component is not put where it must not be seen, and no character
of another split than `train` is put together by chance.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ldm.data.glyphs.captions import GlyphCaptions, GlyphRow
from ldm.data.glyphs.enclosures import BLANK, hole, ink_box
from ldm.data.glyphs.heldout import may_be_shown
from ldm.data.glyphs.names import (
    BOUND,
    LAYOUT_OF,
    OPPOSITE,
    PLACES,
    exact_places,
    name_of,
    outer_and_inner,
    parts_of,
    standing_alone,
)

STRETCH = 1.7  # a piece is widened or heightened so much at most: strokes are no beams
SMALLEST = 0.125  # of the image's side: the least height and width of a piece
FEW = 3  # pieces of a component in a place, below which it may come from elsewhere
MARGIN, GAP = 0.05, 0.03  # of the side: around the glyph, and between its parts
VERSION = 4  # part of the fingerprint: raise it when the same settings give other images


class Character(GlyphRow, Protocol):
    """A row of the glyph table."""

    @property
    def char(self) -> str: ...


class Images(Protocol):
    """The split that pieces are cut from: `ldm.data.glyphs.dataset.GlyphData`."""

    items: Any  # (Character, style, index) of each image
    channels: int
    resolution: int

    @property
    def fingerprint(self) -> str: ...
    def image(self, i: int) -> np.ndarray: ...


Composition = tuple[str, str, str]  # layout, components of the first part, of the second


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an image, and what it is."""

    picture: int  # index in the data set
    box: tuple[int, int, int, int]  # top, bottom, left, right, the ends are outside; of what is around: its hole
    place: str  # where it is cut from: a key of OPPOSITE, 'around', 'inside', or '' where it is a whole character
    components: str
    name: str | None  # where it is one component that has a name
    style: str
    layout: str  # of the character it is cut from

    @property
    def area(self) -> int:
        top, bottom, left, right = self.box
        return (bottom - top) * (right - left)


def lane(inked: np.ndarray) -> int | None:
    """Middle of the only run of blanks between the first and last ink of a bool (size,) profile; None if not one."""
    at = np.flatnonzero(inked)
    gaps = np.flatnonzero(np.diff(at) > 1)
    return int(at[gaps[0]] + at[gaps[0] + 1] + 1) // 2 if len(gaps) == 1 else None


def halves(image: np.ndarray, layout: str) -> list[tuple[int, int, int, int]]:
    """Ink boxes of the two parts of a glyph uint8 (h, w), dark on white; [] where no single blank lane parts them."""
    dark = image < 255 - BLANK
    across = layout == "horizontal"
    middle = lane(np.asarray(dark.any(axis=0 if across else 1)))
    if middle is None:
        return []
    boxes = []
    for span in (slice(None, middle), slice(middle, None)):
        piece = np.zeros_like(dark)
        where = (slice(None), span) if across else (span, slice(None))
        piece[where] = dark[where]
        boxes.append(ink_box(piece))
    return boxes


def find_pieces(data: Images) -> list[Piece]:
    """All pieces of a split's images: the parts of those that can be cut, and whole characters that are components."""
    pieces, least = [], SMALLEST * data.resolution
    for i, (row, style, _) in enumerate(data.items):
        parts = parts_of(row.char, row.structure)
        boxes = halves(data.image(i)[..., 0], row.structure) if parts else []
        for (components, place), box in zip(parts, boxes, strict=False):
            single = len(components) == 1 and place in exact_places(row.char, row.structure)
            name = name_of(components, place, row.radical) if single else None
            if min(box[1] - box[0], box[3] - box[2]) >= least and components:
                pieces.append(Piece(i, box, place, components, name, style, row.structure))
        pieces += enclosure(data, i)
        name = name_of(row.char, "")
        if name and standing_alone(name) == row.char:
            box = ink_box(data.image(i)[..., 0] < 255 - BLANK)
            pieces.append(Piece(i, box, "", row.char, name, style, row.structure))
    return whole_frames(pieces)


def whole_frames(pieces: list[Piece]) -> list[Piece]:
    """Without what is around with a much smaller hole than others of that component: it keeps some of the inner one."""
    areas: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for piece in pieces:
        if piece.place == "around":
            areas[piece.style, piece.components, piece.layout].append(piece.area)
    usual = {key: np.quantile(found, 0.9) for key, found in areas.items()}
    return [p for p in pieces if p.place != "around" or p.area >= 0.8 * usual[p.style, p.components, p.layout]]


def enclosure(data: Images, i: int) -> list[Piece]:
    """What is around and what is inside in a character of two components of which one encloses the other."""
    row, style, _ = data.items[i]
    parts = outer_and_inner(row.char, row.structure)
    if not parts or "around" not in exact_places(row.char, row.structure):
        return []
    image = data.image(i)[..., 0]
    if (box := hole(image, row.structure)) is None:
        return []
    top, bottom, left, right = box
    ink = ink_box(image[top:bottom, left:right] < 255 - BLANK)
    boxes = (box, (top + ink[0], top + ink[1], left + ink[2], left + ink[3]))
    return [
        Piece(i, where, place, c, name, style, row.structure)
        for (c, place), where in zip(parts, boxes, strict=True)
        if len(c) == 1 and (name := name_of(c, place, row.radical))
    ]


def fit(ink: np.ndarray, box: tuple[float, float, float, float], canvas: np.ndarray) -> None:
    """Draw a piece float32 (h, w), ink 1, into the box (top, bottom, left, right) of a canvas, stretched to fit."""
    height, width = ink.shape
    tall, wide = max(2, round(box[1] - box[0])), max(2, round(box[3] - box[2]))
    tall, wide = min(tall, round(height * STRETCH)), min(wide, round(width * STRETCH))
    drawn = np.asarray(Image.fromarray(ink, "F").resize((wide, tall), Image.Resampling.BICUBIC)).clip(0, 1)
    top, left = round((box[0] + box[1] - tall) / 2), round((box[2] + box[3] - wide) / 2)
    view = canvas[top : top + tall, left : left + wide]
    np.maximum(view, drawn, out=view)


def cells(layout: str, share: float, fill: tuple[float, float], size: int) -> list[tuple[float, float, float, float]]:
    """Target boxes of the first and the second part.

    Args:
        share: in (0, 1), of the first part along the line on which they stand.
        fill: how much of the breadth each part takes.
    """
    low, high = MARGIN * size, (1 - MARGIN) * size
    first_end = low + (high - low - GAP * size) * share
    boxes = []
    for (start, end), part in zip(((low, first_end), (first_end + GAP * size, high)), fill, strict=True):
        spread = part * (high - low) / 2
        side = (size / 2 - spread, size / 2 + spread)
        boxes.append((*side, start, end) if layout == "horizontal" else (start, end, *side))
    return boxes


class RecombinedGlyphs:
    """`count` new glyphs with captions, a data set like any other: see `ldm.data.ImageTextData`.

    Glyph i is drawn by a generator of (seed, i) alone: a component and a place alike often for all that are allowed,
    what stands in the other place (half the time a named component too, else a part of several that real characters
    have there), sizes by what the pieces measure.
    """

    has_captions = True

    def __init__(
        self,
        data: Images,
        captions: GlyphCaptions,
        count: int,
        never: frozenset[Composition] = frozenset(),
        seed: int = 0,
    ):
        """`data`: the training split; `never`: what is not put together, the characters of the other splits."""
        self.data, self.captions, self.count, self.never, self.seed = data, captions, count, never, seed
        self.channels, self.resolution = data.channels, data.resolution
        self.ids = [f"recombined/{seed}/{i}" for i in range(count)]

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides the pixels."""
        text = f"recombined {VERSION} {self.seed} {self.count} {self.data.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _stock(self) -> "Stock":
        return Stock(self.data, self.never)

    def parts(self, i: int) -> list[tuple[Piece, str]]:
        """The two pieces of glyph i, each with its place, in the layout's order; what is around comes first."""
        return self._stock.draw(np.random.default_rng([self.seed, 11, i]))

    def image(self, i: int) -> np.ndarray:
        """uint8 (resolution, resolution, channels): white ground 255, black ink 0."""
        rng = np.random.default_rng([self.seed, 12, i])
        canvas = self._stock.compose(self.parts(i), rng)
        grey = (255 - 255 * canvas).round().astype(np.uint8)
        return np.repeat(grey[..., None], self.channels, axis=-1)

    def caption(self, i: int, rng: np.random.Generator) -> str:
        """One caption drawn anew: what was placed where; a piece without a name is not spoken of."""
        parts = self.parts(i)
        named = [(piece.name, place) for piece, place in parts if piece.name]
        return self.captions.of_parts(layout_of(parts), named, parts[0][0].style, rng)


class Stock:
    """The pieces by name, place and style, and the draws from them."""

    def __init__(self, data: Images, never: frozenset[Composition]):
        self.data, self.never = data, never
        self.by_name: dict[tuple[str, str, str], list[Piece]] = defaultdict(list)  # style, name, place
        self.by_place: dict[tuple[str, str], list[Piece]] = defaultdict(list)  # style, place
        for piece in find_pieces(data):
            if piece.name:
                self.by_name[piece.style, piece.name, piece.place].append(piece)
            elif piece.place:
                self.by_place[piece.style, piece.place].append(piece)
        self.styles = sorted({style for style, _ in self.by_place})
        self.names = {style: sorted({name for s, name, _ in self.by_name if s == style}) for style in self.styles}
        self.around = {
            s: sorted(n for style, n, at in self.by_name if (style, at) == (s, "around")) for s in self.styles
        }

    def forms(self, style: str, name: str, place: str) -> list[Piece]:
        """Pieces of that name fit for a place: those from it, else the character itself, else those from elsewhere."""
        there = self.by_name.get((style, name, place), [])
        alone = self.by_name.get((style, name, ""), [])
        elsewhere = [p for other in OPPOSITE for p in self.by_name.get((style, name, other), [])]
        found = there if len(there) >= FEW or place == "around" else there + alone or elsewhere
        return [p for p in found if place == "around" or place in BOUND.get(p.components, (*OPPOSITE, "inside"))]

    def draw(self, rng: np.random.Generator) -> list[tuple[Piece, str]]:
        """Two pieces with their places, in the layout's order."""
        while True:
            style = self.styles[rng.integers(len(self.styles))]
            places = [*OPPOSITE, "around"] if self.around[style] else [*OPPOSITE]
            place = places[rng.integers(len(places))]
            opposite = OPPOSITE.get(place, "inside")
            one = self._named(style, place, rng)
            other = self._named(style, opposite, rng) if place == "around" else self._any(style, opposite, rng)
            if one is None or other is None:
                continue
            order = PLACES.get(LAYOUT_OF.get(place, ""), ("around", "inside"))
            pair = sorted([(one, place), (other, opposite)], key=lambda x: order.index(x[1]))
            layout, (first, second) = layout_of(pair), (piece.components for piece, _ in pair)
            if (layout, first, second) not in self.never and all(allowed(piece, at, layout) for piece, at in pair):
                return pair

    def _named(self, style: str, place: str, rng: np.random.Generator) -> Piece | None:
        """A named component, alike often for all names; None where it has no form for that place."""
        names = self.around[style] if place == "around" else self.names[style]
        found = self.forms(style, names[rng.integers(len(names))], place)
        return found[rng.integers(len(found))] if found else None

    def _any(self, style: str, place: str, rng: np.random.Generator) -> Piece | None:
        """What stands beside it: half the time a named component, else a part of several that real ones have."""
        if rng.random() < 0.5:
            return self._named(style, place, rng)
        pieces = self.by_place[style, place]
        return pieces[rng.integers(len(pieces))]

    def compose(self, parts: list[tuple[Piece, str]], rng: np.random.Generator) -> np.ndarray:
        """Ink float32 (resolution, resolution) in [0, 1]."""
        if parts[0][1] == "around":
            return self._enclose(parts[0][0], parts[1][0], rng)
        size, layout = self.data.resolution, LAYOUT_OF[parts[0][1]]
        lengths, breadths = [], []
        for piece, place in parts:
            tall, wide = piece.box[1] - piece.box[0], piece.box[3] - piece.box[2]
            along, breadth = (wide, tall) if layout == "horizontal" else (tall, wide)
            # a piece from the other line is squeezed to the share that a part of its kind has
            lengths.append(along if piece.place and LAYOUT_OF[piece.place] == layout else 0.6 * along)
            breadths.append(max(breadth / size / (1 - 2 * MARGIN), 0.6) * (1 if piece.place == place else 1.1))
        share = lengths[0] / sum(lengths) + rng.uniform(-0.05, 0.05)
        fill = (min(1.0, breadths[0] * rng.uniform(0.92, 1.05)), min(1.0, breadths[1] * rng.uniform(0.92, 1.05)))
        canvas = np.zeros((size, size), np.float32)
        for (piece, _), box in zip(parts, cells(layout, float(np.clip(share, 0.25, 0.75)), fill, size), strict=True):
            fit(self._ink(piece.picture, piece.box), box, canvas)
        return canvas

    def _ink(self, picture: int, box: tuple[int, int, int, int]) -> np.ndarray:
        """A part of an image as ink float32 (h, w) in [0, 1]."""
        top, bottom, left, right = box
        return (255 - self.data.image(picture)[top:bottom, left:right, 0]).astype(np.float32) / 255

    def _enclose(self, outer: Piece, inner: Piece, rng: np.random.Generator) -> np.ndarray:
        """What is around as it is, without what was in its hole, and the other one there."""
        size, (top, bottom, left, right) = self.data.resolution, outer.box
        canvas = self._ink(outer.picture, (0, size, 0, size))
        canvas[top:bottom, left:right] = 0
        gap = GAP * size * rng.uniform(0.8, 1.2)
        fit(self._ink(inner.picture, inner.box), (top + gap, bottom - gap, left + gap, right - gap), canvas)
        return canvas


def layout_of(parts: list[tuple[Piece, str]]) -> str:
    """The layout of pieces in these places; the first one's own where it encloses."""
    piece, place = parts[0]
    return LAYOUT_OF.get(place, piece.layout)


def allowed(piece: Piece, place: str, layout: str) -> bool:
    """Whether nothing of the piece is held out from that place and layout."""
    single = len(piece.components) == 1
    names = ((c, piece.name if single else name_of(c, place)) for c in piece.components)
    return all(may_be_shown(component, name, layout, place) for component, name in names)


def composition(row: Character) -> Composition | None:
    """What a character is put together from; None where it is not two parts beside, above or around each other."""
    parts = parts_of(row.char, row.structure) or outer_and_inner(row.char, row.structure)
    return (row.structure, parts[0][0], parts[1][0]) if parts else None
