"""What a glyph model is asked to draw when it is measured: a fixed list, so that two models answer the same questions.

`assets/glyph_prompts.tsv` holds it and `python -m ldm.evaluation.glyphs.prompts` wrote it. Its sections:

- `layout`: the phrase of every layout, alone, as most people type it;
- `radical`: 'glyph with the water radical' for the 36 radicals that are commonest in training;
- `pair`: a layout with a radical, both common in training and never together (`ldm.data.glyphs.dataset.HELD_OUT`);
- `style`: sans or serif, alone and with the two commonest layouts;
- `character`: everything there is to say of each character of the test split, none of which was trained on.
"""

import csv
import io
from collections import Counter
from dataclasses import astuple, dataclass, fields
from importlib import resources
from pathlib import Path

from ldm.data.glyphs.captions import STRUCTURES, STYLE_PHRASES, layout_phrase, radical_phrase
from ldm.data.glyphs.dataset import HELD_OUT, Glyph, split_characters
from ldm.utils.atomic_files import write_whole

FILE = "assets/glyph_prompts.tsv"
SECTIONS = ("layout", "radical", "pair", "style", "character")
RADICALS = 36
UNNAMED = "other"  # its phrase is plain 'glyph': nothing to obey


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt and what a picture must have to agree with it; "" and 0 where the prompt does not say."""

    section: str
    prompt: str
    layout: str = ""  # a key of STRUCTURES
    radical: int = 0  # 1..214
    style: str = ""  # a key of STYLE_PHRASES
    strokes: int = 0
    codepoint: int = 0  # of the character that is described


def glyph_prompts(sections: tuple[str, ...] = SECTIONS) -> list[Asked]:
    """The fixed list, section after section."""
    text = resources.files("ldm.evaluation").joinpath(FILE).read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text), delimiter="\t"))[1:]
    asked = [
        Asked(s, prompt, layout, int(r), style, int(n), int(point)) for s, prompt, layout, r, style, n, point in rows
    ]
    return [one for section in sections for one in asked if one.section == section]


def compose() -> list[Asked]:
    """The list, made anew from the glyph table and its split."""
    splits = split_characters()
    commonest = [radical for radical, _ in Counter(row.radical for row in splits["train"]).most_common(RADICALS)]
    heads = {"": "glyph", **{layout: layout_phrase(layout) for layout in ("horizontal", "vertical")}}
    return [
        *(Asked("layout", layout_phrase(name), layout=name) for name in STRUCTURES if name != UNNAMED),
        *(Asked("radical", f"glyph {radical_phrase(r)}", radical=r) for r in commonest),
        *(Asked("pair", f"{layout_phrase(s)} {radical_phrase(r)}", layout=s, radical=r) for r, s in HELD_OUT),
        *(
            Asked("style", f"{head} {STYLE_PHRASES[style]}", layout=layout, style=style)
            for layout, head in heads.items()
            for style in ("hei", "song")
        ),
        *(described(row) for row in splits["test"] if row.structure != UNNAMED),
    ]


def described(row: Glyph) -> Asked:
    """All that a caption can say of a character but its style, with the first of its meanings."""
    sense = [f"meaning {row.senses[0]}"] if row.senses else []
    strokes = f"{row.strokes} stroke{'s' if row.strokes != 1 else ''}"
    prompt = ", ".join([f"{layout_phrase(row.structure)} {radical_phrase(row.radical)}", *sense, strokes])
    return Asked("character", prompt, row.structure, row.radical, strokes=row.strokes, codepoint=row.codepoint)


def as_text(asked: list[Asked]) -> str:
    page = io.StringIO()
    writer = csv.writer(page, delimiter="\t", lineterminator="\n")
    writer.writerow([f.name for f in fields(Asked)])
    writer.writerows(astuple(one) for one in asked)
    return page.getvalue()


if __name__ == "__main__":
    write_whole(Path(__file__).parents[1] / FILE, as_text(compose()).encode())
