"""What each character of the glyph table is put together from, and which components are forms of which radical.

`assets/components.tsv.xz` (made by scripts/build_glyph_table.py) has a row for each character of the glyph table. It is
apart from that table, so that captions and pictures do not depend on it. A component is named by a character of its
own: 明 is 日 beside 月, 想 is 木 and 目 over 心. Where a character falls into a left and a right or an upper and a
lower part, the components of the two parts are kept apart.
"""

import lzma
import unicodedata
from functools import cache
from importlib import resources

# Shapes a radical takes inside a character, beside its own; some serve two radicals.
_FORMS = (
    "亻9 丷12 冫15 ⺀15 刂18 㔾26 ⺌42 忄61 ⺗61 㣺61 户63 扌64 攵66 月130 "
    "⺼130 母80 氵85 氺85 灬86 爫87 犭94 王96 礻113 罒122 糹120 纟120 艹140 衤145 "
    "𧘇145 覀146 见147 讠149 贝154 车159 辶162 阝163 阝170 钅167 长168 门169 韦178 页181 "
    "风182 飞183 飠184 饣184 马187 鱼195 鸟196 麦199 黾205 齐210 齿211 龙212 龟213"
)
# Kangxi radicals 1 to 6 are single strokes and no components.
FIRST_COMPOSED = 7
KANGXI = "".join(unicodedata.normalize("NFKC", chr(0x2F00 + i)) for i in range(214))


@cache
def radical_forms() -> dict[str, frozenset[int]]:
    """Component -> the radicals (7..214) it is a form of; components that are no radical have no entry."""
    forms: dict[str, set[int]] = {KANGXI[r - 1]: {r} for r in range(FIRST_COMPOSED, 215)}
    for entry in _FORMS.split():
        forms.setdefault(entry[0], set()).add(int(entry[1:]))
    return {component: frozenset(radicals) for component, radicals in forms.items()}


@cache
def _rows() -> list[list[str]]:
    file = resources.files("ldm.data").joinpath("assets/components.tsv.xz")
    return [line.split("\t") for line in lzma.decompress(file.read_bytes()).decode("utf-8").splitlines()[1:]]


@cache
def load_components() -> dict[str, tuple[str, ...]]:
    """Character -> its parts, each a string of components.

    Two parts where it is made of two beside or above each other, else one. A part is empty where its components have
    no name; within a part none is named twice.
    """
    return {chr(int(codepoint, 16)): tuple(parts.split("|")) for codepoint, parts, _ in _rows()}


@cache
def exact_parts() -> dict[str, tuple[bool, ...]]:
    """Character -> of each of its parts, whether it is just the components named: no other stroke, and none twice.

    Of 麻 the part 林 is not exact: it is two trees, and 木 is named once.
    """
    return {chr(int(codepoint, 16)): tuple(flag == "1" for flag in exact) for codepoint, _, exact in _rows()}


def components_of(char: str) -> tuple[str, ...]:
    """The components of a character, each once, in the order of its parts. Raises: KeyError if not in the table."""
    return tuple(dict.fromkeys("".join(load_components()[char])))
