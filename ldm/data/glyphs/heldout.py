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

from ldm.data.glyphs.components import radical_forms

HELD_OUT: tuple[tuple[int, str], ...] = (
    (38, "vertical"),  # woman
    (64, "vertical"),  # hand
    (82, "lower left"),  # fur
    (96, "vertical"),  # jade
    (102, "horizontal"),  # field
    (109, "vertical"),  # eye
    (112, "vertical"),  # stone
    (119, "vertical"),  # rice
    (120, "vertical"),  # silk
    (130, "vertical"),  # flesh
    (149, "vertical"),  # speech
    (167, "vertical"),  # metal
    (182, "horizontal"),  # wind
    (187, "vertical"),  # horse
    (195, "vertical"),  # fish
)
LATER: tuple[tuple[int, str], ...] = (
    (18, "vertical"),  # knife
    (19, "vertical"),  # power
    (94, "vertical"),  # dog
    (113, "vertical"),  # spirit
    (115, "vertical"),  # grain
    (128, "vertical"),  # ear
    (147, "vertical"),  # see
    (148, "vertical"),  # horn
    (164, "vertical"),  # wine
    (172, "vertical"),  # short-tailed bird
    (173, "horizontal"),  # rain
    (177, "vertical"),  # leather
    (181, "vertical"),  # page
    (203, "vertical"),  # black
    (211, "vertical"),  # tooth
)
PLACES_HELD_OUT: tuple[tuple[str, str], ...] = (
    ("body", "bottom"),
    ("city", "bottom"),
    ("clan", "top"),
    ("cow", "right"),
    ("dry", "left"),
    ("even", "bottom"),
    ("few", "bottom"),
    ("fire", "top"),
    ("grass", "left"),
    ("heart", "right"),
    ("humble", "left"),
    ("inch", "left"),
    ("insect", "top"),
    ("its", "top"),
    ("jar", "right"),
    ("lack", "top"),
    ("moon", "bottom"),
    ("moreover", "top"),
    ("nail", "left"),
    ("pig", "bottom"),
    ("plough", "right"),
    ("private", "left"),
    ("sixth branch", "bottom"),
    ("snout", "left"),
    ("sound", "top"),
    ("spoon", "bottom"),
    ("sudden", "top"),
    ("tall", "left"),
    ("tanned leather", "bottom"),
    ("thus", "top"),
)
_PAIRS = frozenset(HELD_OUT + LATER)


def held_out(radical: int, layout: str) -> bool:
    """Whether no character of this radical and layout is trained on."""
    return (radical, layout) in _PAIRS


def may_be_shown(component: str, name: str | None, layout: str, place: str) -> bool:
    """Whether a recombined glyph may have this component, or a caption may name it, in this place of this layout."""
    radicals = radical_forms().get(component, frozenset())
    return (name, place) not in PLACES_HELD_OUT and not any(held_out(radical, layout) for radical in radicals)
