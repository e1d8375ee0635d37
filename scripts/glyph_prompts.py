"""Write the fixed list of prompts that glyph models are evaluated on, from the glyph table and its split.

python -m scripts.glyph_prompts
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, fields
from pathlib import Path

from ldm.data.glyphs.captions import PLACE_PHRASES, STRUCTURES, STYLE_PHRASES, layout_phrase, radical_phrase
from ldm.data.glyphs.dataset import Glyph, describe, load_table, split_characters
from ldm.data.glyphs.heldout import HELD_OUT, LATER, PLACES_HELD_OUT, may_be_shown
from ldm.data.glyphs.names import BOUND, LAYOUT_OF, PLACES, name_of, named_parts, parts_of
from ldm.evaluation.glyphs.adherence import forms_of, known_forms
from ldm.evaluation.glyphs.classifier import GlyphClassifier
from ldm.evaluation.glyphs.prompts import FILE, PromptSpec
from ldm.utils.atomic_files import atomic_write

RADICALS = 36
UNNAMED = "other"  # its phrase is plain 'glyph': nothing to agree with
FREQUENT = 100  # parts of training characters: fewer, and a name is hardly learned
PAIRS = 5  # of components, for each layout, seen and unseen; each in both orders


def compose() -> list[PromptSpec]:
    """The list, made anew from the glyph table and its split."""
    splits = split_characters()
    commonest = [radical for radical, _ in Counter(row.radical for row in splits["train"]).most_common(RADICALS)]
    heads = {"": "glyph", **{layout: layout_phrase(layout) for layout in ("horizontal", "vertical")}}
    return [
        *(PromptSpec("layout", layout_phrase(name), layout=name) for name in STRUCTURES if name != UNNAMED),
        *(PromptSpec("radical", f"glyph {radical_phrase(r)}", radical=r) for r in commonest),
        *pairs("pair", HELD_OUT),
        *(
            PromptSpec("style", f"{head} {STYLE_PHRASES[style]}", layout=layout, style=style)
            for layout, head in heads.items()
            for style in ("hei", "song")
        ),
        *(described(row) for row in splits["test"] if row.structure != UNNAMED),
        *pairs("later", LATER),
        *composed(GlyphClassifier().components),
        *in_parts(splits["test"]),
    ]


def pairs(section: str, of: tuple[tuple[int, str], ...]) -> list[PromptSpec]:
    """A layout with a radical."""
    return [PromptSpec(section, f"{layout_phrase(s)} {radical_phrase(r)}", layout=s, radical=r) for r, s in of]


def composed(known: list[str]) -> list[PromptSpec]:
    """Components with places; `known`: those that the classifier has a class for.

    Pairs are of names that are frequent and may stand in either place; of these, for each layout, the PAIRS with the
    least sha256("ldm component FIRST SECOND"), no name twice.
    """
    asked = [placed("place", [(name, place)]) for name, place in PLACES_HELD_OUT if known_forms(name, known)]
    trained = [
        (row.structure, named_parts(row.char, row))
        for row in split_characters(later=True)["train"]
        if row.structure in PLACES
    ]
    totals = Counter(name for _, parts in trained for name, _ in parts)
    frequent = {name for name, count in totals.items() if count >= FREQUENT}
    for section in ("component_seen", "component_unseen"):
        for layout, places in PLACES.items():
            names = {name for name in frequent if free(name, layout, known)}
            seen = {(p[0][0], p[1][0]) for structure, p in trained if structure == layout and len(p) == 2}
            met = together(layout)
            unseen = {(a, b) for a in names for b in names if frozenset((a, b)) not in met}
            for pair in least([p for p in (seen if section == "component_seen" else unseen) if set(p) <= names]):
                asked += [placed(section, list(zip(order, places, strict=True))) for order in (pair, pair[::-1])]
    return asked


def free(name: str, layout: str, known: list[str]) -> bool:
    """Whether it has a known form for either place of a layout, and is held out from neither in any form."""
    forms = forms_of(name)
    shown = all(may_be_shown(form, name, layout, place) for form in forms for place in PLACES[layout])
    return shown and all(
        any(name_of(form, place) == name and place in BOUND.get(form, PLACES[layout]) for form in forms & set(known))
        for place in PLACES[layout]
    )


def together(layout: str) -> set[frozenset]:
    """Names that any character of the table has in the two places of a layout."""
    met = set()
    for row in load_table():
        parts = parts_of(row.char, row.structure) if row.structure == layout else []
        names = [{name_of(c, place, row.radical) for c in part} for part, place in parts]
        met |= {frozenset((a, b)) for a in names[0] for b in names[1]} if names else set()
    return met


def least(candidates: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those with the least hashes, no name twice."""
    chosen: list[tuple[str, str]] = []
    for pair in sorted(
        candidates, key=lambda pair: hashlib.sha256("ldm component {} {}".format(*pair).encode()).digest()
    ):
        fresh = len(set(pair) - {name for other in chosen for name in other}) == 2
        if len(chosen) < PAIRS and fresh:
            chosen.append(pair)
    return chosen


def placed(section: str, parts: list[tuple[str, str]]) -> PromptSpec:
    """'glyph with water on the left and horse on the right'."""
    said = " and ".join(f"{name} {PLACE_PHRASES[place][0]}" for name, place in parts)
    text = ", ".join(f"{name} {place}" for name, place in parts)
    return PromptSpec(section, f"glyph with {said}", LAYOUT_OF[parts[0][1]], parts=text)


def described(row: Glyph) -> PromptSpec:
    """All that a caption can say of a character but its parts and style, with the first of its meanings."""
    prompt = describe(row, positions=False)
    return PromptSpec("character", prompt, row.structure, row.radical, strokes=row.strokes, codepoint=row.codepoint)


def in_parts(rows: list[Glyph]) -> Iterator[PromptSpec]:
    """Layout, both parts with their places, and strokes, of characters of two named parts.

    Not of those of which a training character has the same parts, as a simplified one and the traditional one.
    """
    seen = {(row.structure, *named_parts(row.char, row)) for row in split_characters(later=True)["train"]}
    for row in rows:
        parts = named_parts(row.char, row)
        if len(parts) == 2 and (row.structure, *parts) not in seen:
            text = ", ".join(f"{one} {place}" for name, place in parts for one in name.split(" and "))
            found = {"layout": row.structure, "strokes": row.strokes, "codepoint": row.codepoint, "parts": text}
            yield PromptSpec("named", describe(row), **found)


def as_text(asked: list[PromptSpec]) -> str:
    page = io.StringIO()
    writer = csv.writer(page, delimiter="\t", lineterminator="\n")
    writer.writerow([f.name for f in fields(PromptSpec)])
    writer.writerows(astuple(one) for one in asked)
    return page.getvalue()


if __name__ == "__main__":
    atomic_write(Path(__file__).parents[1] / "ldm" / "evaluation" / FILE, as_text(compose()).encode())
