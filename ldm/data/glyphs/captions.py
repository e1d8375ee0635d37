"""English captions of glyphs: layout, radical, meaning, strokes and style, drawn anew at every call.

A caption has a head (the layout phrase, or just 'glyph') and optional parts:

    horizontal stacked glyph with the water radical, meaning big river, 9 strokes, in sans style

`CaptionOptions` holds the probability of every part. Everything is lower-case ASCII; a caption is never empty.

Where a glyph is two parts beside or above each other, or one around the other, those that have names are named with
their places, and so is the place of the radical; a part without a name is not spoken of. A share of the captions is in
forms that people type:

    glyph with water on the left and horse on the right
    roof above woman
    vertical stacked glyph with the fire radical at the bottom
"""

from typing import Protocol

import numpy as np

from ldm.config.settings import CaptionOptions

# Layout name -> (ideographic description character, the phrase, other ways to say it).
STRUCTURES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "horizontal": ("\u2ff0", "horizontal stacked glyph", ("left and right glyph", "glyph stacked horizontally")),
    "vertical": ("\u2ff1", "vertical stacked glyph", ("top and bottom glyph", "glyph stacked vertically")),
    "three across": ("\u2ff2", "three across glyph", ("glyph of three parts side by side",)),
    "three stacked": ("\u2ff3", "three stacked glyph", ("glyph of three parts one above another",)),
    "enclosed": ("\u2ff4", "enclosed glyph", ("glyph enclosed on all sides",)),
    "above": ("\u2ff5", "glyph enclosed from above", ("glyph open at the bottom",)),
    "below": ("\u2ff6", "glyph enclosed from below", ("glyph open at the top",)),
    "left": ("\u2ff7", "glyph enclosed from the left", ("glyph open on the right",)),
    "upper left": ("\u2ff8", "glyph enclosed from the upper left", ("glyph with a part over its upper left",)),
    "upper right": ("\u2ff9", "glyph enclosed from the upper right", ("glyph with a part over its upper right",)),
    "lower left": ("\u2ffa", "glyph enclosed from the lower left", ("glyph with a part under its lower left",)),
    "overlaid": ("\u2ffb", "overlaid glyph", ("glyph of overlapping parts",)),
    "single": ("", "single glyph", ("glyph in one piece",)),
    "triangle": ("", "triangle glyph", ("triangle of three equal parts",)),
    "two by two": ("", "two by two glyph", ("square of four equal parts",)),
    "other": ("", "glyph", ()),
}
STYLE_PHRASES = {"hei": "in sans style", "song": "in serif style", "own": ""}

# The 214 Kangxi radicals in order, each with a name of its own.
_NAMES = """
one, line, dot, slash, second, hook, two, lid, man, legs, enter, eight, wide frame, cover, ice, table, open box, knife,
power, wrap, spoon, box, hiding box, ten, divination, seal, cliff, private, again, mouth, enclosure, earth, scholar,
go, go slowly, evening, big, woman, child, roof, inch, small, lame, corpse, sprout, mountain, stream, work, oneself,
cloth, dry, thread, shelter, long stride, two hands, shoot, bow, snout, bristle, step, heart, halberd, door, hand,
branch, tap, script, dipper, axe, square, without, sun, say, moon, tree, lack, stop, death, weapon, do not, compare,
fur, clan, steam, water, fire, claw, father, mix, split wood, slice, fang, cow, dog, dark, jade, melon, tile, sweet,
life, use, field, cloth bolt, sickness, footsteps, white, skin, dish, eye, spear, arrow, stone, spirit, track, grain,
cave, stand, bamboo, rice, silk, jar, net, sheep, feather, old, and, plough, ear, brush, flesh, minister, self, arrive,
mortar, tongue, oppose, boat, mountain stop, colour, grass, tiger, insect, blood, walk, clothes, west, see, horn,
speech, valley, bean, pig, badger, shell, red, run, foot, body, cart, bitter, morning, movement, city, wine,
distinguish, village, metal, long, gate, mound, slave, short-tailed bird, rain, blue, wrong, face, leather,
tanned leather, leek, sound, page, wind, fly, eat, head, fragrant, horse, bone, tall, hair, fight, herbs, cauldron,
ghost, fish, bird, salt, deer, wheat, hemp, yellow, millet, black, embroidery, frog, tripod, drum, rat, nose, even,
tooth, dragon, turtle, flute
"""
RADICALS: tuple[str, ...] = tuple(name.strip() for name in _NAMES.replace("\n", " ").split(","))


class GlyphRow(Protocol):
    """What a caption needs to know of a character."""

    @property
    def structure(self) -> str: ...  # a key of STRUCTURES
    @property
    def radical(self) -> int: ...  # 1..214
    @property
    def strokes(self) -> int: ...
    @property
    def senses(self) -> tuple[str, ...]: ...  # short English meanings; may be empty


def layout_phrase(structure: str) -> str:
    """Return the phrase that names a layout, e.g. 'horizontal stacked glyph'; KeyError for an unknown name."""
    return STRUCTURES[structure][1]


def radical_phrase(radical: int) -> str:
    """Return e.g. 'with the water radical' for 85; IndexError outside 1..214."""
    if not 1 <= radical <= len(RADICALS):
        raise IndexError(f"radical must be 1..{len(RADICALS)}, got {radical}")
    return f"with the {RADICALS[radical - 1]} radical"


def strokes_phrase(count: int) -> str:
    """'1 stroke', '8 strokes'."""
    return f"{count} stroke{'s' if count != 1 else ''}"


# Where a part stands -> how it is said.
PLACE_PHRASES = {
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("above", "at the top", "on top"),
    "bottom": ("below", "at the bottom", "underneath"),
    "around": ("around", "around the rest", "on the outside"),
    "inside": ("inside", "in the middle", "within"),
}
# Layout -> one part told from the other: first then second, or the other way round; enclosures have the last.
_BESIDE = {
    "horizontal": ("{0} beside {1}", "{0} left of {1}", "{1} right of {0}", "{0} next to {1}"),
    "vertical": ("{0} above {1}", "{0} over {1}", "{1} under {0}", "{1} below {0}"),
    "": ("{0} around {1}", "{1} inside {0}", "{1} in {0}", "{0} around {1}"),
}
Named = list[tuple[str, str]]  # (name, place) of the parts that have names, in the layout's order


class GlyphCaptions:
    """Draws captions by the probabilities of `CaptionOptions`."""

    def __init__(self, options: CaptionOptions):
        self.options = options

    def caption(
        self, row: GlyphRow, style: str, rng: np.random.Generator, named: Named | None = None, radical_place: str = ""
    ) -> str:
        """Return one caption of `row` drawn in `style` (a key of STYLE_PHRASES); the same rng state gives the same.

        Args:
            named, radical_place: see `ldm.data.glyphs.names`.
        """
        weights, named = self.options, named or []
        if rng.random() < weights.plain:
            return layout_phrase(row.structure)
        if weights.typed and rng.random() < weights.typed:
            return self._typed(row.structure, RADICALS[row.radical - 1], radical_place, named, style, rng)
        head = self._head(row.structure, rng)
        parts = self._parts(row, style, rng)
        if radical_place and parts and parts[0] == radical_phrase(row.radical) and self._places(rng):
            parts[0] += " " + _place(radical_place, rng)
        if named and self._places(rng):
            parts = [self._said(named, rng), *(p for p in parts if not p.startswith("with "))]
        return self._joined(head, parts, rng)

    def of_parts(self, layout: str, named: Named, style: str, rng: np.random.Generator) -> str:
        """Return one caption of a glyph of which nothing is known but what stands where; `named` is not empty."""
        name, place = named[int(rng.integers(len(named)))]
        if rng.random() < 0.5:
            return self._typed(layout, name if name in RADICALS else "", place, named, style, rng)
        plain = name in RADICALS and rng.random() < self.options.radical
        parts = [f"with the {name} radical" if plain else self._said(named, rng)]
        if rng.random() < self.options.style and STYLE_PHRASES[style]:
            parts.append(STYLE_PHRASES[style])
        return self._joined(self._head(layout, rng), parts, rng)

    def _places(self, rng: np.random.Generator) -> bool:
        """Whether places are named; at probability 0 no random number is used, so older captions stay as they were."""
        return self.options.places > 0 and rng.random() < self.options.places

    def _joined(self, head: str, parts: list[str], rng: np.random.Generator) -> str:
        if parts and rng.random() < self.options.shuffle:
            return ", ".join(rng.permutation([head, *parts]).tolist())
        if parts and parts[0].startswith("with "):
            head, parts = f"{head} {parts[0]}", parts[1:]
        return ", ".join([head, *parts])

    def _said(self, named: Named, rng: np.random.Generator) -> str:
        """'water on the left, horse on the right', in either order."""
        said = [f"{name} {_place(place, rng)}" for name, place in named]
        return ", ".join(said if rng.random() < 0.5 else said[::-1])

    def _typed(
        self, layout: str, radical: str, radical_place: str, named: Named, style: str, rng: np.random.Generator
    ) -> str:
        """A form that people type; `radical`: its name, or '' where none may be said."""
        head = layout_phrase(layout) if rng.random() < 0.5 else "glyph"
        forms = []
        if radical:
            forms.append(f"{head} with the {radical} radical")
            if radical_place:
                forms.append(f"{head} with the {radical} radical {_place(radical_place, rng)}")
        if named:
            said = [f"{name} {_place(place, rng)}" for name, place in named]
            forms.append(f"{head} with {' and '.join(said if rng.random() < 0.7 else said[::-1])}")
        if len(named) == 2:
            first, second = ((f"a {name}" if rng.random() < 0.2 else name) for name, _ in named)
            ways = _BESIDE.get(layout, _BESIDE[""])
            beside = ways[rng.integers(len(ways))].format(first, second)
            forms.append(beside if rng.random() < 0.3 else f"glyph of {beside}")
        text = forms[rng.integers(len(forms))] if forms else head
        phrase = STYLE_PHRASES[style]
        return f"{text}, {phrase}" if phrase and rng.random() < self.options.style / 2 else text

    def _head(self, structure: str, rng: np.random.Generator) -> str:
        if rng.random() >= self.options.layout:
            return "glyph"
        _, phrase, others = STRUCTURES[structure]
        if others and rng.random() < self.options.synonyms:
            return others[rng.integers(len(others))]
        return phrase

    def _parts(self, row: GlyphRow, style: str, rng: np.random.Generator) -> list[str]:
        weights = self.options
        wanted = rng.random(4) < (weights.radical, weights.meaning, weights.strokes, weights.style)
        sense = f"meaning {row.senses[rng.integers(len(row.senses))]}" if row.senses else ""
        parts = (radical_phrase(row.radical), sense, strokes_phrase(row.strokes), STYLE_PHRASES[style])
        return [part for part, drawn in zip(parts, wanted, strict=True) if drawn and part]


def _place(place: str, rng: np.random.Generator) -> str:
    """How a place is said: mostly in its first form."""
    phrases = PLACE_PHRASES[place]
    return phrases[0] if rng.random() < 0.5 else phrases[rng.integers(len(phrases))]
