"""English names of components, and of the parts of a character by the place they stand in.

A component that is a form of a Kangxi radical has the radical's name, whatever its form: 氵, 水 and 氺 are 'water'. The
other frequent ones are named by a sense of theirs (Unihan kDefinition, shortened). No two have the same name; what has
none is never named. Two forms depend on more than themselves: 阝 is a mound at the left and a city at the right, and 月
is the moon, or flesh where flesh is the radical of the character.
"""

from functools import cache

from ldm.data.glyphs.captions import PLACE_PHRASES, RADICALS, STRUCTURES, STYLE_PHRASES, GlyphRow, strokes_phrase
from ldm.data.glyphs.components import KANGXI, exact_parts, load_components, radical_forms
from ldm.data.glyphs.heldout import may_be_shown

# How the first and the second part of a layout stand.
PLACES: dict[str, tuple[str, str]] = {"horizontal": ("left", "right"), "vertical": ("top", "bottom")}
ENCLOSING = ("enclosed", "above", "below", "left", "upper left", "upper right", "lower left")
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
LAYOUT_OF = {place: layout for layout, places in PLACES.items() for place in places}

# Forms that stand nowhere else; elsewhere the component's other form is written.
BOUND: dict[str, tuple[str, ...]] = {
    **dict.fromkeys("亻冫忄扌氵犭礻衤糹纟讠钅飠饣彳爯丬", ("left",)),
    **dict.fromkeys("刂卩彡攵", ("right",)),
    **dict.fromkeys("艹宀冖罒亠穴虍髟爫覀⺆耂⺌⺍亼癶丷䒑", ("top",)),
    **dict.fromkeys("灬儿廾辶廴", ("bottom",)),
    "阝": ("left", "right"),
}

_OTHERS = """
且 moreover, 甫 begin, 旦 dawn, 卑 humble, 兼 together, 丁 nail, 其 its, 良 good, 由 cause, 乍 sudden, 夭 tender,
九 nine, 巴 snail, 也 also, 刃 blade, 今 now, 必 must, 丰 lush, 勺 ladle, 亡 lost, 里 mile, 千 thousand, 天 sky,
半 half, 中 centre, 七 seven, 甲 armour, 申 stretch, 井 well, 乃 thus, 世 generation, 丸 pill, 凡 ordinary, 少 few,
上 upper, 下 lower, 三 three, 五 five, 六 six, 万 myriad, 壬 ninth stem, 亏 loss, 柬 letter, 丂 breath, 具 tool,
巳 sixth branch, 兀 stool, 主 host, 未 not yet, 末 end, 本 root, 东 east, 丘 hill, 乌 crow, 云 cloud, 电 lightning
"""
_DOUBLE = {"月": 74, "阝": 170}  # forms of two radicals: the one that is meant unless something says otherwise


@cache
def component_names() -> dict[str, str]:
    """Component -> its name."""
    names = {char: RADICALS[_DOUBLE.get(char, min(radicals)) - 1] for char, radicals in radical_forms().items()}
    del names["\u800c"]  # 'and' would be read as the word between two parts
    others = [entry.strip() for entry in _OTHERS.split(",")]
    return {entry[0]: entry[2:] for entry in others} | names


@cache
def caption_slots() -> dict[str, tuple[str, str]]:
    """Phrase -> (slot, meaning): replaced by one of its slot with another meaning, it makes a caption wrong."""
    layouts = {name: (phrase, *others) for name, (_, phrase, others) in STRUCTURES.items() if name != "other"}
    slots = {phrase: ("layout", name) for name, phrases in layouts.items() for phrase in phrases}
    slots |= {phrase: ("place", place) for place, phrases in PLACE_PHRASES.items() for phrase in phrases}
    slots |= {phrase: ("style", style) for style, phrase in STYLE_PHRASES.items() if phrase}
    slots |= {strokes_phrase(n): ("strokes", str(n)) for n in range(1, 49)}
    return slots | {name: ("component", name) for name in {*RADICALS, *component_names().values()} - {"and"}}


def name_of(component: str, place: str, radical: int = 0) -> str | None:
    """The name of a component that stands at a place (a key of OPPOSITE) of a character with that radical."""
    if component == "阝" and place == "right":
        return RADICALS[163 - 1]
    if component == "月" and radical == 130:
        return RADICALS[130 - 1]
    return component_names().get(component)


def parts_of(char: str, structure: str) -> list[tuple[str, str]]:
    """(components, place) of the two parts of a character beside or above each other; [] for all others."""
    parts = load_components().get(char, ())
    return list(zip(parts, PLACES[structure], strict=True)) if structure in PLACES and len(parts) == 2 else []


def exact_places(char: str, structure: str) -> frozenset[str]:
    """The places of the parts that are just the components they are said to be."""
    exact = exact_parts().get(char, ())
    if structure in PLACES:
        return frozenset(place for place, whole in zip(PLACES[structure], exact, strict=False) if whole)
    return frozenset(("around", "inside")) if all(exact) else frozenset()


def outer_and_inner(char: str, structure: str) -> list[tuple[str, str]]:
    """(components, place) of what encloses and what is enclosed, 'around' and 'inside'; [] where nothing encloses."""
    held = "".join(load_components().get(char, ()))
    return [(held[0], "around"), (held[1:], "inside")] if structure in ENCLOSING and len(held) > 1 else []


def named_parts(char: str, row: GlyphRow) -> list[tuple[str, str]]:
    """(name, place) of the parts of a character that may be spoken of: of one component, or of two, that have names."""
    found, exact = [], exact_places(char, row.structure)
    for part, place in parts_of(char, row.structure) or outer_and_inner(char, row.structure):
        names = [name_of(component, place, row.radical) for component in part]
        spoken = all(n and may_be_shown(c, n, row.structure, place) for c, n in zip(part, names, strict=True))
        if names and len(names) <= 2 and spoken and place in exact:
            found.append((" and ".join(filter(None, names)), place))
    return found


def radical_place(char: str, row: GlyphRow) -> str:
    """Where the radical of a character stands; '' where it is in both parts, in none, or the character has no two."""
    forms = radical_forms()
    places = [
        place for part, place in parts_of(char, row.structure) if any(row.radical in forms.get(c, ()) for c in part)
    ]
    return places[0] if len(places) == 1 else ""


def standing_alone(name: str) -> str | None:
    """The character that a component of this name is by itself: 水 for 'water'; None where no character is."""
    if name in RADICALS:
        return KANGXI[RADICALS.index(name)]
    return next((char for char, other in component_names().items() if other == name), None)
