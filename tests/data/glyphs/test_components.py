"""The shipped components of known characters."""

import pytest

from ldm.data.glyphs.components import KANGXI, components_of, exact_parts, load_components, radical_forms
from ldm.data.glyphs.dataset import load_table, split_characters


@pytest.mark.parametrize(
    "char, parts",
    [
        ("明", ("日", "月")),
        ("想", ("木目", "心")),
        ("江", ("氵", "工")),
        ("信", ("亻", "言")),
        ("语", ("讠", "力口")),
        ("困", ("囗木",)),
        ("芳", ("艹", "方")),
        ("龍", ("龍",)),
    ],
)
def test_known_characters(char, parts):
    assert load_components()[char] == parts


def test_every_character_of_the_table_has_a_row_in_the_same_order():
    assert list(load_components()) == [row.char for row in load_table()]


def test_no_component_is_named_twice_and_parts_are_at_most_two():
    for parts in load_components().values():
        assert len(parts) <= 2 and all(len(set(part)) == len(part) for part in parts)
    assert components_of("林") == ("木",)


def test_forms_name_the_radicals_they_stand_for():
    forms = radical_forms()
    assert len(KANGXI) == 214 and KANGXI[37] == "女"
    assert forms["氵"] == forms["水"] == {85} and forms["讠"] == {149} and forms["阝"] == {163, 170}
    assert "一" not in forms


def test_nearly_every_character_holds_a_form_of_its_radical():
    """Radicals come from Unihan, components from another source: where they agree, both are right."""
    forms, rows = radical_forms(), [row for row in load_table() if row.radical > 6]
    agree = [any(row.radical in forms.get(c, ()) for c in components_of(row.char)) for row in rows]
    assert sum(agree) / len(agree) > 0.96


def test_some_hundreds_of_components_are_frequent_in_training():
    counts: dict[str, int] = {}
    for row in split_characters()["train"]:
        for component in components_of(row.char):
            counts[component] = counts.get(component, 0) + 1
    assert 200 <= sum(number >= 40 for number in counts.values()) <= 400


@pytest.mark.parametrize(
    "char, exact",
    [("明", (True, True)), ("焚", (False, True)), ("林", (False,)), ("聞", (True,)), ("邱", (False, True))],
)
def test_a_part_with_a_component_twice_or_a_stroke_more_is_not_exact(char, exact):
    assert exact_parts()[char] == exact


def test_every_part_is_exact_or_not():
    assert all(len(exact_parts()[char]) == len(parts) for char, parts in load_components().items())
