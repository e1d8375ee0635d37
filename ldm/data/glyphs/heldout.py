"""What no training image and no caption shows: radicals in layouts, and components in places, kept for tests.

All three lists were fixed before a model was trained on captions that name places or on recombined glyphs:

- `HELD_OUT`: (radical, layout) of 15 to 44 characters each, both common in training, chosen by hand.
- `LATER`: layout horizontal or vertical, 4 to 14 characters, the radical on 40 or more others and none of `HELD_OUT`;
  of these the 15 with the least sha256("ldm pair RADICAL LAYOUT"), one for each radical.
- `PLACES_HELD_OUT`: (name, place) that 1 to 9 characters have as a whole part, the name on 30 or more parts and the
  radical of no pair above; of these the 30 with the least sha256("ldm place NAME PLACE"), one for each name.

Characters of held-out pairs are the `heldout` split (of `LATER`, those that were in `train` before). A character of
another radical may contain a held-out component in its held-out place: its image stays in training, and no caption
names the component there.
`tests/data/glyphs/test_heldout.py` works the last two lists out anew.
"""

from ldm.data.glyphs.captions import RADICALS
from ldm.data.glyphs.components import radical_forms


def _named(text: str) -> list[tuple[str, str]]:
    return [(name, where) for name, where in (entry.strip().split(": ") for entry in text.split(","))]


def _pairs(text: str) -> tuple[tuple[int, str], ...]:
    return tuple((RADICALS.index(name) + 1, layout) for name, layout in _named(text))


HELD_OUT = _pairs("""
woman: vertical, hand: vertical, fur: lower left, jade: vertical, field: horizontal, eye: vertical, stone: vertical,
rice: vertical, silk: vertical, flesh: vertical, speech: vertical, metal: vertical, wind: horizontal, horse: vertical,
fish: vertical
""")
LATER = _pairs("""
knife: vertical, power: vertical, dog: vertical, spirit: vertical, grain: vertical, ear: vertical, see: vertical,
horn: vertical, wine: vertical, short-tailed bird: vertical, rain: horizontal, leather: vertical, page: vertical,
black: vertical, tooth: vertical
""")
PLACES_HELD_OUT = tuple(
    _named("""
body: bottom, city: bottom, clan: top, cow: right, dry: left, even: bottom, few: bottom, fire: top, grass: left,
heart: right, humble: left, inch: left, insect: top, its: top, jar: right, lack: top, moon: bottom, moreover: top,
nail: left, pig: bottom, plough: right, private: left, sixth branch: bottom, snout: left, sound: top, spoon: bottom,
sudden: top, tall: left, tanned leather: bottom, thus: top
""")
)
_PAIRS = frozenset(HELD_OUT + LATER)


def held_out(radical: int, layout: str) -> bool:
    """Whether no character of this radical and layout is trained on."""
    return (radical, layout) in _PAIRS


def may_be_shown(component: str, name: str | None, layout: str, place: str) -> bool:
    """Whether a recombined glyph may have this component, or a caption may name it, in this place of this layout."""
    radicals = radical_forms().get(component, frozenset())
    return (name, place) not in PLACES_HELD_OUT and not any(held_out(radical, layout) for radical in radicals)
