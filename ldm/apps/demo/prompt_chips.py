"""What prompts are built from by clicking: for glyphs layout, component, position and strokes; for others words."""

from collections.abc import Sequence
from functools import cache

from ldm.apps.demo.prompt_words import COMMON, SHORTEST, Words, words_of
from ldm.data.glyphs.captions import PLACE_PHRASES, RADICALS, STRUCTURES, strokes_phrase
from ldm.data.glyphs.names import ENCLOSING, PLACES, component_names
from ldm.utils.errors import UserError

ANY = "any"
STROKES = range(1, 31)  # on offer; captions have up to 48


@cache
def layouts() -> tuple[str, ...]:
    """The layouts on offer, by their names."""
    return (ANY, *(name for name in STRUCTURES if name != "other"))


@cache
def components(positions: bool = True) -> tuple[str, ...]:
    """Names of components, in alphabetical order: radicals alone where the captions have no `positions`."""
    return (ANY, *sorted({*RADICALS, *(component_names().values() if positions else ())} - {"and"}))


def positions(layout: str) -> tuple[str, ...]:
    """Where a component may stand in a layout."""
    if layout == ANY:
        return (ANY, *PLACE_PHRASES)
    return (ANY, *PLACES.get(layout, ("around", "inside") if layout in ENCLOSING else ()))


def glyph_prompt(layout: str, component: str, position: str = ANY, strokes: int | None = None) -> str:
    """The prompt of these choices, as the captions say it: 'vertical stacked glyph with fire below, 9 strokes'.

    A component without a position is named as the radical. Raises: UserError for a choice that is not on offer.
    """
    for name, value, allowed in (
        ("layout", layout, layouts()),
        ("component", component, components()),
        ("position", position, (ANY, *PLACE_PHRASES)),
        ("strokes", strokes, (None, *STROKES)),
    ):
        if value not in allowed:
            raise UserError(f"{name} must be one of those on offer, got {str(value)[:40]!r}")
    if component not in (ANY, *RADICALS) and position == ANY:
        raise UserError(f"{component} is no radical: choose its position too")
    text = "glyph" if layout == ANY else STRUCTURES[layout][1]
    if component != ANY:
        said = f"the {component} radical" if position == ANY else f"{component} {PLACE_PHRASES[position][0]}"
        text += f" with {said}"
    if strokes is not None:
        text += f", {strokes_phrase(strokes)}"
    return text


def word_chips(words: Words, examples: Sequence[str]) -> list[str]:
    """Words to put into a prompt: the most frequent of the captions, else those of the examples."""
    of_examples = [word for word in words_of(examples) if len(word) >= SHORTEST and word not in COMMON]
    return words.frequent() or of_examples


def with_word(prompt: str, word: str) -> str:
    """A prompt with a word at its end, or without it where it is there already."""
    present = prompt.split()
    kept = [each for each in present if each.strip(",.").lower() != word]
    return " ".join([*present, word] if len(kept) == len(present) else kept)
