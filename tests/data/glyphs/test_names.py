from collections import Counter

import pytest

from ldm.data.glyphs.captions import RADICALS
from ldm.data.glyphs.components import radical_forms
from ldm.data.glyphs.dataset import load_table
from ldm.data.glyphs.names import component_names, name_of, named_parts, parts_of, radical_place, standing_alone


@pytest.fixture(scope="module")
def table():
    return {row.char: row for row in load_table()}


def test_components_that_are_no_radical_have_names_of_their_own():
    others = [name for char, name in component_names().items() if char not in radical_forms()]
    assert len(others) == len(set(others)) and not set(others) & set(RADICALS)


def test_most_whole_parts_have_a_name(table):
    parts = [(p, place, r) for r in table.values() for p, place in parts_of(r.char, r.structure) if len(p) == 1]
    named = sum(name_of(part, place, row.radical) is not None for part, place, row in parts)
    assert named / len(parts) > 0.97


@pytest.mark.parametrize(
    "char, parts",
    [
        ("\u99ae", [("ice", "left"), ("horse", "right")]),
        ("\u660e", [("sun", "left"), ("moon", "right")]),
        ("\u60f3", [("heart", "bottom")]),  # tree and eye above: eye is held out there
        ("\u8336", [("grass", "top")]),
        ("\u9664", [("mound", "left")]),  # the other part has three components
        ("\u90ed", [("city", "right")]),
        ("\u809d", [("flesh", "left"), ("dry", "right")]),
        ("\u6c34", []),  # one piece
        ("\u711a", [("fire", "bottom")]),  # two trees above are not 'tree'
        ("\u59bb", []),  # woman below is held out
        ("\u95fb", [("gate", "around"), ("ear", "inside")]),
        ("\u56da", [("enclosure", "around"), ("man", "inside")]),
    ],
)
def test_parts_of_known_characters(table, char, parts):
    found = named_parts(char, table[char])
    assert found == parts


def test_no_caption_part_is_held_out(table):
    from ldm.data.glyphs.heldout import PLACES_HELD_OUT

    spoken = Counter(
        (name, place)
        for row in table.values()
        for names, place in named_parts(row.char, row)
        for name in names.split(" and ")
    )
    assert not set(spoken) & set(PLACES_HELD_OUT)
    assert not {("woman", "bottom"), ("field", "left"), ("rain", "right"), ("moon", "top"), ("fur", "around")} & set(
        spoken
    )
    assert spoken["grass", "top"] > 500 and spoken["woman", "left"] > 200


def test_where_the_radical_stands(table):
    assert radical_place("\u6c5f", table["\u6c5f"]) == "left"
    assert radical_place("\u82b1", table["\u82b1"]) == "top"
    assert radical_place("\u6797", table["\u6797"]) == ""  # on both sides


@pytest.mark.parametrize("name, char", [("water", "\u6c34"), ("hand", "\u624b"), ("dawn", "\u65e6")])
def test_a_component_by_itself(name, char):
    assert standing_alone(name) == char and name_of(char, "left") == name


def test_what_has_no_name_is_not_named():
    assert name_of("\U00020089", "top") is None and standing_alone("no such name") is None
