"""The prompts on which glyph models are evaluated: a fixed list, so that two models can be compared.

`assets/glyph_prompts.tsv` holds it; `python -m scripts.glyph_prompts` wrote it. Its sections:

- `layout`: the phrase of every layout, alone, as most people type it;
- `radical`: 'glyph with the water radical' for the 36 radicals that are commonest in training;
- `pair`: a layout with a radical, both common in training and never together (`ldm.data.glyphs.heldout.HELD_OUT`);
- `style`: sans or serif, alone and with the two commonest layouts;
- `character`: everything there is to say of each character of the test split, none of which was trained on.

And of `COMPOSITION`, which `scripts/glyph_prompts.py` chooses by rules that were fixed before any model saw them:

- `later`: as `pair`, the second list: `ldm.data.glyphs.heldout.LATER`;
- `place`: a component in a place that no training caption and no recombined glyph shows (`PLACES_HELD_OUT`), those that
  the glyph classifier knows;
- `component_seen`: two components and their places, in both orders; a training character has them so in the first one;
- `component_unseen`: likewise, of two components that no character of the table has beside or above each other;
- `named`: likewise of those whose two parts both have names: layout, both with their places, and strokes. Not those
  of which a training character has the same parts, as a simplified one and the traditional one.
"""

import csv
import io
from dataclasses import dataclass
from importlib import resources

FILE = "assets/glyph_prompts.tsv"
SECTIONS = ("layout", "radical", "pair", "style", "character")
RECOMBINED = ("later", "place", "component_seen", "component_unseen")  # what real glyphs to compare with are
COMPOSITION = (*RECOMBINED, "named")
DESCRIBED = ("character", "named")  # of characters of the test split
SAMPLED = ("character", "component_seen", "component_unseen", "named")  # of many; the other lists are complete


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """One prompt and what an image must have to agree with it; "" and 0 where the prompt does not say."""

    section: str
    prompt: str
    layout: str = ""  # a key of STRUCTURES
    radical: int = 0  # 1..214
    style: str = ""  # a key of STYLE_PHRASES
    strokes: int = 0
    codepoint: int = 0  # of the character that is described
    parts: str = ""  # components that are asked for, with their places: 'water left, horse right'

    @property
    def named(self) -> list[tuple[str, str]]:
        """(name, place) of each component that is asked for."""
        pairs = [part.rpartition(" ") for part in filter(None, self.parts.split(", "))]
        return [(name, place) for name, _, place in pairs]


def glyph_prompts(sections: tuple[str, ...] = SECTIONS) -> list[PromptSpec]:
    """The fixed list, section after section."""
    text = resources.files("ldm.evaluation").joinpath(FILE).read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text), delimiter="\t"))[1:]
    asked = [
        PromptSpec(s, prompt, layout, int(r), style, int(n), int(point), parts)
        for s, prompt, layout, r, style, n, point, parts in rows
    ]
    return [one for section in sections for one in asked if one.section == section]
