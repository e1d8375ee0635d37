"""Write the fixed list of prompts that glyph models are evaluated on, from the glyph table and its split.

python -m scripts.glyph_prompts
"""

import csv
import io
from collections import Counter
from dataclasses import astuple, fields
from pathlib import Path

from ldm.data.glyphs.captions import STRUCTURES, STYLE_PHRASES, layout_phrase, radical_phrase
from ldm.data.glyphs.dataset import Glyph, split_characters
from ldm.data.glyphs.heldout import HELD_OUT
from ldm.evaluation.glyphs.prompts import FILE, PromptSpec
from ldm.utils.atomic_files import atomic_write

RADICALS = 36
UNNAMED = "other"  # its phrase is plain 'glyph': nothing to agree with


def compose() -> list[PromptSpec]:
    """The list, made anew from the glyph table and its split."""
    splits = split_characters()
    commonest = [radical for radical, _ in Counter(row.radical for row in splits["train"]).most_common(RADICALS)]
    heads = {"": "glyph", **{layout: layout_phrase(layout) for layout in ("horizontal", "vertical")}}
    return [
        *(PromptSpec("layout", layout_phrase(name), layout=name) for name in STRUCTURES if name != UNNAMED),
        *(PromptSpec("radical", f"glyph {radical_phrase(r)}", radical=r) for r in commonest),
        *(PromptSpec("pair", f"{layout_phrase(s)} {radical_phrase(r)}", layout=s, radical=r) for r, s in HELD_OUT),
        *(
            PromptSpec("style", f"{head} {STYLE_PHRASES[style]}", layout=layout, style=style)
            for layout, head in heads.items()
            for style in ("hei", "song")
        ),
        *(described(row) for row in splits["test"] if row.structure != UNNAMED),
    ]


def described(row: Glyph) -> PromptSpec:
    """All that a caption can say of a character but its style, with the first of its meanings."""
    sense = [f"meaning {row.senses[0]}"] if row.senses else []
    strokes = f"{row.strokes} stroke{'s' if row.strokes != 1 else ''}"
    prompt = ", ".join([f"{layout_phrase(row.structure)} {radical_phrase(row.radical)}", *sense, strokes])
    return PromptSpec("character", prompt, row.structure, row.radical, strokes=row.strokes, codepoint=row.codepoint)


def as_text(asked: list[PromptSpec]) -> str:
    page = io.StringIO()
    writer = csv.writer(page, delimiter="\t", lineterminator="\n")
    writer.writerow([f.name for f in fields(PromptSpec)])
    writer.writerows(astuple(one) for one in asked)
    return page.getvalue()


if __name__ == "__main__":
    atomic_write(Path(__file__).parents[1] / "ldm" / "evaluation" / FILE, as_text(compose()).encode())
