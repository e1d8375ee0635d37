"""Prompts for parts put together as training never showed them: how well they could be obeyed, and what real ones show.

The ceiling of such a prompt is what the glyph classifier says of glyphs that do have it: where real characters are
few, or trained on, of glyphs recombined from the pieces of real ones (`ldm.data.glyphs.recombination`) whatever is held
out. The classifier learned from glyphs made alike, so it may find in them a little more than in a person's.
"""

import copy
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from ldm.data import evenly_spaced_indices
from ldm.data.glyphs.captions import RADICALS
from ldm.data.glyphs.components import components_of, radical_forms
from ldm.data.glyphs.dataset import GlyphData, load_table, split_of
from ldm.data.glyphs.heldout import PLACES_HELD_OUT
from ldm.data.glyphs.names import LAYOUT_OF, OPPOSITE, PLACES, name_of, parts_of, standing_alone
from ldm.data.glyphs.recombination import Piece, Stock
from ldm.evaluation.comparison import Scores
from ldm.evaluation.glyphs.adherence import Scorer, forms_of
from ldm.evaluation.glyphs.prompts import PromptSpec, glyph_prompts

CUT = 5000  # training images from which pieces are cut
EACH = 6  # recombined glyphs of each prompt
Placed = list[tuple[Piece, str]]  # pieces with their places, in the layout's order


class Recombiner:
    """Glyphs that have what a prompt asks for, from the pieces of a training split."""

    def __init__(self, train: GlyphData, seed: int = 0):
        chosen, part = set(evenly_spaced_indices(len(train), CUT).tolist()), copy.copy(train)
        part.items = [
            item for i, item in enumerate(train.items) if i in chosen or name_of(item[0].char, "") is not None
        ]
        self.stock, self.rng = Stock(part, frozenset()), np.random.default_rng(seed)

    def images(self, spec: PromptSpec, count: int = EACH) -> np.ndarray:
        """uint8 (n, size, size), dark on white; n is 0 where pieces are missing or the layout is not of two parts."""
        wanted = self._wanted(spec)
        made = [self._parts(wanted[i % len(wanted)]) for i in range(count if wanted else 0)]
        drawn = [255 - 255 * self.stock.compose(parts, self.rng) for parts in made if parts]
        size = self.stock.data.resolution
        return np.array(drawn).round().astype(np.uint8).reshape(-1, size, size)

    def _wanted(self, spec: PromptSpec) -> list[list[tuple[str, str]]]:
        """The (name, place) lists that a prompt leaves open."""
        if spec.parts:
            return [spec.named]
        places = PLACES.get(spec.layout, ()) if spec.radical else ()
        return [[(RADICALS[spec.radical - 1], place)] for place in places]

    def _parts(self, wanted: list[tuple[str, str]]) -> Placed:
        """Pieces for these names, and any other one beside a single name; [] where there are none."""
        style = self.stock.styles[self.rng.integers(len(self.stock.styles))] if self.stock.styles else ""
        found = {place: self.stock.forms(style, name, place) for name, place in wanted}
        for place in list(found):
            found.setdefault(OPPOSITE[place], self._any(style, OPPOSITE[place]))
        if not all(found.values()):
            return []
        order = PLACES[LAYOUT_OF[wanted[0][1]]]
        return [(found[place][self.rng.integers(len(found[place]))], place) for place in order]

    def _any(self, style: str, place: str) -> list[Piece]:
        """What real characters have in a place: half the time a named component, else a part of several."""
        stock = self.stock
        named = [p for (s, _, at), pieces in stock.by_name.items() if (s, at) == (style, place) for p in pieces]
        several = stock.by_place.get((style, place), [])
        return named or several if self.rng.random() < 0.5 else several or named

    def ceiling(self, specs: Sequence[PromptSpec], scorer: Scorer) -> dict[str, float]:
        """Mean scores of recombined glyphs for each prompt, averaged over the prompts that could be made."""
        images, asked = [], []
        for spec in dict.fromkeys(specs):
            made = self.images(spec)
            images += list(made)
            asked += [spec] * len(made)
        if not images:
            return {}
        scores: Scores = scorer.scores(scorer(np.array(images)), asked)
        keys = np.array([spec.prompt for spec in asked])
        means = {name: [np.mean(values[keys == key]) for key in np.unique(keys)] for name, values in scores.items()}
        return {name: float(np.nanmean(each)) for name, each in means.items() if np.isfinite(each).any()}


def real_characters(spec: PromptSpec) -> int:
    """How many training characters show it all the same; of what is held out no caption says so.

    Of a pair, those of other radicals with a form of this one in that layout; of components, those with them there.
    """
    wanted = set(spec.named)
    rows = (row for row in _trained() if row.layout == spec.layout)
    if wanted:
        return sum(wanted <= row.named for row in rows)
    return sum(row.radical != spec.radical and spec.radical in row.forms for row in rows)


class Shown(NamedTuple):
    """What a training character shows."""

    layout: str
    radical: int
    named: frozenset[tuple[str | None, str]]  # (name, place) of its components
    forms: frozenset[int]  # radicals of which it has a form


@cache
def _trained() -> tuple[Shown, ...]:
    forms, found = radical_forms(), []
    for row in load_table():
        if split_of(row, later=True) == "train":
            parts = [(c, place) for part, place in parts_of(row.char, row.structure) for c in part]
            named = frozenset((name_of(c, place, row.radical), place) for c, place in parts)
            radicals = frozenset(r for c in components_of(row.char) for r in forms.get(c, ()))
            found.append(Shown(row.structure, row.radical, named, radicals))
    return tuple(found)


def accepted(specs: Sequence[PromptSpec]) -> dict[str, str]:
    """Name -> the forms that count as it, of all radicals and components that are asked for."""
    names = {name for spec in specs for name, _ in spec.named} | {RADICALS[s.radical - 1] for s in specs if s.radical}
    return {name: "".join(sorted(forms_of(name) | {standing_alone(name) or ""})) for name in sorted(names)}


def facts(section: str, specs: Sequence[PromptSpec]) -> dict:
    """What stands beside the scores of a section of composition, ready for JSON."""
    asked = list(dict.fromkeys(specs))
    found: dict = {
        "accepted": accepted(asked),
        "ceiling_of": "real characters" if section == "pair" else "recombined glyphs",
        "real_characters": {spec.prompt: real_characters(spec) for spec in asked},
    }
    if section == "place":
        scored = {part for spec in glyph_prompts(("place",)) for part in spec.named}
        found["not_scored"] = [f"{name} {place}" for name, place in PLACES_HELD_OUT if (name, place) not in scored]
    return found
