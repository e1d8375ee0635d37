"""The fixed list of prompts is what the data set says it is, and none of the characters in it was trained on."""

from collections import Counter

import pytest

from ldm.data.glyphs.dataset import load_table, split_characters, split_of
from ldm.data.glyphs.heldout import HELD_OUT, LATER, PLACES_HELD_OUT
from ldm.data.glyphs.names import named_parts
from ldm.evaluation.glyphs.prompts import COMPOSITION, SECTIONS, glyph_prompts


@pytest.fixture(scope="module")
def asked():
    return glyph_prompts()


def test_sections_come_in_order_and_can_be_asked_for_alone(asked):
    assert list(dict.fromkeys(one.section for one in asked)) == list(SECTIONS)
    assert Counter(one.section for one in asked) == {
        "layout": 15, "radical": 36, "pair": 15, "style": 6, "character": 1015,
    }  # fmt: skip
    assert [one.section for one in glyph_prompts(("pair",))] == ["pair"] * 15


def test_prompts_say_what_they_ask_for(asked):
    by_prompt = {one.prompt: one for one in asked}
    assert by_prompt["horizontal stacked glyph"].layout == "horizontal"
    assert by_prompt["glyph with the water radical"].radical == 85
    assert by_prompt["glyph in serif style"].style == "song"
    pair = by_prompt["vertical stacked glyph with the horse radical"]
    assert (pair.radical, pair.layout) == (187, "vertical")


def test_the_pairs_never_occur_in_training(asked):
    trained = {(row.radical, row.structure) for row in split_characters()["train"]}
    pairs = {(one.radical, one.layout) for one in asked if one.section == "pair"}
    assert pairs == set(HELD_OUT) and not pairs & trained


def test_the_characters_are_those_of_the_test_split_with_their_own_facts(asked):
    rows = {row.codepoint: row for row in load_table()}
    for one in asked:
        if one.section == "character":
            row = rows[one.codepoint]
            assert split_of(row) == "test"
            assert (one.layout, one.radical, one.strokes) == (row.structure, row.radical, row.strokes)
            assert f"{row.strokes} stroke" in one.prompt and (not row.senses or row.senses[0] in one.prompt)


def test_composition_asks_for_what_training_does_not_show():
    asked = glyph_prompts(COMPOSITION)
    assert list(dict.fromkeys(one.section for one in asked)) == list(COMPOSITION)
    assert {(one.radical, one.layout) for one in asked if one.section == "later"} == set(LATER)
    assert {part for one in asked if one.section == "place" for part in one.named} <= set(PLACES_HELD_OUT)
    pairs = [one for one in asked if one.section.startswith("component")]
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):  # both orders
        assert [name for name, _ in one.named] == [name for name, _ in reversed(other.named)]


def test_characters_of_two_named_parts_are_described_by_both():
    rows = {row.codepoint: row for row in load_table()}
    asked = glyph_prompts(("named",))
    seen = {(row.structure, *named_parts(row.char, row)) for row in split_characters(later=True)["train"]}
    for one in asked:
        row = rows[one.codepoint]
        parts = named_parts(row.char, row)
        assert split_of(row) == "test" and (one.layout, one.strokes) == (row.structure, row.strokes)
        assert len(parts) == 2 and (row.structure, *parts) not in seen  # as of \u7eb1, whose \u7d17 is in training
        assert one.named == [(name, place) for names, place in parts for name in names.split(" and ")]
    said = {chr(one.codepoint): one.prompt for one in asked}
    assert said["\u79cd"] == "horizontal stacked glyph, grain on the left, centre on the right, 9 strokes"


def test_what_a_prompt_says_is_what_it_is_scored_for():
    from ldm.evaluation.glyphs.phrases import parts_asked_for

    for one in glyph_prompts(COMPOSITION[1:]):
        assert parts_asked_for(one.prompt) == one.named, one.prompt
