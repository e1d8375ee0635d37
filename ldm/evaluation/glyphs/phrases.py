"""What people type about the parts of a glyph, read: which component is asked for, and where.

    glyph of a tree beside a dog              tree on the left, dog on the right
    fire under a roof                         roof at the top, fire at the bottom
    gate around an ear                        gate around, ear inside
    glyph with water on the left              water on the left
    rain above, tree and fire underneath      rain at the top, tree and fire at the bottom
    vertical stacked glyph with the jade radical at the bottom

A name is one of `ldm.data.glyphs.names`, with or without an article; words that are no part of a form are passed over.
The captions that a model is trained on are in these forms, so a prompt needs no translation: this is for measuring.
"""

import re
from functools import cache

from ldm.data.glyphs.captions import PLACE_PHRASES, RADICALS
from ldm.data.glyphs.names import component_names

# Words between two names -> the places of the first and the second.
_BETWEEN = {
    **dict.fromkeys(("beside", "next to", "left of", "to the left of"), ("left", "right")),
    **dict.fromkeys(("right of", "to the right of"), ("right", "left")),
    **dict.fromkeys(("above", "over", "on top of"), ("top", "bottom")),
    **dict.fromkeys(("under", "below", "beneath", "underneath"), ("bottom", "top")),
    **dict.fromkeys(("around", "enclosing"), ("around", "inside")),
    **dict.fromkeys(("inside", "in", "within"), ("inside", "around")),
}
_AFTER = {phrase: place for place, phrases in PLACE_PHRASES.items() for phrase in phrases}


def _any_of(words) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    names = _any_of({*RADICALS, *component_names().values()} - {"and"})
    name = rf"(?:(?:a|an|the) )?({names})(?: radical)?"
    between = re.compile(rf"\b{name} (?:is )?({_any_of(_BETWEEN)}) {name}(?![\w-])")
    after = re.compile(rf"\b(?:{name} and )?{name} (?:is )?({_any_of(_AFTER)})(?![\w-])(?! (?:of|(?:a|an|the) )\b)")
    return between, after


def parts_asked_for(prompt: str) -> list[tuple[str, str]]:
    """(name, place) of each part that a prompt names with its place, in the order in which they are said.

    The place is 'left', 'right', 'top', 'bottom', 'around' or 'inside'; [] for a prompt that says nothing of the kind.
    """
    text = " ".join(prompt.lower().split())
    between, after = _patterns()
    if found := between.search(text):
        one, word, other = found.groups()
        return list(zip((one, other), _BETWEEN[word], strict=True))
    return [(name, _AFTER[place]) for *names, place in after.findall(text) for name in names if name]
