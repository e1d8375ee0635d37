"""The bars that open the report of coloured digits."""

from typing import Any

from ldm.data.digits import INKS, SLANT, THICKNESS
from ldm.evaluation.verdict import Bar, share_bar

BARS = (  # section, attribute, its number of values, title, what the percentage says
    ("seen", "digit", 10, "Is the digit right?", "of images show the digit that the prompt names"),
    ("seen", "ink", len(INKS), "Is the colour right?", "of images have the colour that the prompt names"),
    (
        "heldout",
        "both",
        10 * len(INKS),
        "Does it compose?",
        "of images have digit and colour, in pairs that training never showed",
    ),
    (
        "seen_described",
        "thickness",
        len(THICKNESS),
        "Is the pen right?",
        "of images have the pen that the prompt names",
    ),
    ("seen_described", "slant", len(SLANT), "Is the slant right?", "of images have the slant that the prompt names"),
)


def bars(sections: dict[str, dict[str, Any]]) -> list[Bar]:
    """Digit, colour, unseen pairs, pen and slant; chance is one of the values at random, real is real handwriting."""
    found = []
    for section, attribute, values, title, what in BARS:
        if one := sections.get(section, {}).get(attribute):
            real = sections["real"].get(attribute)
            found.append(share_bar(title, what, one | {"floor": 1 / values, "ceiling": real and real["share"]}))
    return found
