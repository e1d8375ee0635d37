import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.config.settings import CaptionOptions
from ldm.data.glyphs.captions import RADICALS, STRUCTURES, GlyphCaptions, layout_phrase, radical_phrase
from ldm.data.glyphs.dataset import Glyph

RIVER = Glyph(0x6C5F, 85, 6, True, "horizontal", ("large river",))
NAMELESS = Glyph(0x4E00, 1, 1, True, "single", ())
NEVER = dict.fromkeys(
    ("layout", "radical", "meaning", "style", "strokes", "shuffle", "synonyms", "plain", "places", "typed"), 0
)
ALWAYS = NEVER | dict.fromkeys(("layout", "radical", "meaning", "style", "strokes"), 1)


def draw(row=RIVER, shown="hei", seed=0, **weights):
    return GlyphCaptions(CaptionOptions(**weights)).caption(row, shown, np.random.default_rng(seed))


def test_layout_phrases_are_what_people_type():
    assert layout_phrase("horizontal") == "horizontal stacked glyph"
    assert layout_phrase("vertical") == "vertical stacked glyph"
    assert layout_phrase("enclosed") == "enclosed glyph"
    assert layout_phrase("upper left") == "glyph enclosed from the upper left"
    assert layout_phrase("single") == "single glyph"


def test_symbols_of_the_layouts_are_the_ideographic_description_characters_in_order():
    symbols = [symbol for symbol, _, _ in STRUCTURES.values() if symbol]
    assert symbols == [chr(code) for code in range(0x2FF0, 0x2FFC)]


def test_all_parts_in_order():
    full = "horizontal stacked glyph with the water radical, meaning large river, 6 strokes, in sans style"
    assert draw(**ALWAYS) == full
    assert draw(shown="song", **ALWAYS).endswith("in serif style")


def test_no_part_gives_the_bare_word_never_an_empty_caption():
    assert draw(**NEVER) == "glyph"


def test_plain_is_the_layout_phrase_alone():
    assert {draw(seed=s, **(ALWAYS | {"plain": 1})) for s in range(20)} == {"horizontal stacked glyph"}


def test_a_character_without_a_usable_definition_has_no_meaning_part():
    assert draw(NAMELESS, **ALWAYS) == "single glyph with the one radical, 1 stroke, in sans style"


def test_own_font_has_no_style_phrase():
    assert "style" not in draw(shown="own", **ALWAYS)


def test_shuffling_keeps_the_parts():
    parts = {"horizontal stacked glyph", "with the water radical", "meaning large river", "6 strokes", "in sans style"}
    drawn = {draw(seed=s, **(ALWAYS | {"shuffle": 1})) for s in range(40)}
    assert len(drawn) > 20
    assert all(set(caption.split(", ")) == parts for caption in drawn)


def test_synonyms_say_the_layout_in_other_words():
    drawn = {draw(seed=s, **(NEVER | {"layout": 1, "synonyms": 1})) for s in range(20)}
    assert drawn == set(STRUCTURES["horizontal"][2])


def test_every_sense_is_drawn():
    row = Glyph(0x6C34, 85, 4, True, "single", ("water", "liquid", "juice"))
    drawn = {draw(row, seed=s, **(NEVER | {"meaning": 1})) for s in range(40)}
    assert drawn == {"glyph, meaning water", "glyph, meaning liquid", "glyph, meaning juice"}


@pytest.mark.parametrize(
    "part, words", [("radical", "radical"), ("meaning", "meaning"), ("strokes", "strokes"), ("style", "style")]
)
def test_parts_come_as_often_as_their_weight_says(part, words):
    captions = GlyphCaptions(CaptionOptions(**(NEVER | {part: 0.3})))
    rng = np.random.default_rng(1)
    share = np.mean([words in captions.caption(RIVER, "hei", rng) for _ in range(4000)])
    assert abs(share - 0.3) < 0.03  # four standard errors


def test_the_default_weights_show_the_bare_layout_phrase_often():
    captions = GlyphCaptions(CaptionOptions())
    rng = np.random.default_rng(2)
    share = np.mean([captions.caption(RIVER, "hei", rng) == "horizontal stacked glyph" for _ in range(2000)])
    assert share > CaptionOptions().plain * 0.8


@settings(max_examples=60, deadline=None)
@given(
    weights=st.fixed_dictionaries({name: st.floats(0, 1) for name in NEVER}),
    structure=st.sampled_from(list(STRUCTURES)),
    radical=st.integers(1, 214),
    seed=st.integers(0, 2**31),
)
def test_any_caption_is_lower_case_ascii_and_repeatable(weights, structure, radical, seed):
    row = Glyph(0x4E00, radical, 3, False, structure, ("to go", "one"))
    caption = draw(row, seed=seed, **weights)
    assert re.fullmatch(r"[a-z0-9][a-z0-9 ,'\-]*[a-z0-9]", caption)
    assert caption == draw(row, seed=seed, **weights)


def test_radical_names_are_unique_and_agree_with_unicode():
    assert len(RADICALS) == len(set(RADICALS)) == 214
    official = [unicodedata.name(chr(0x2F00 + i)).removeprefix("KANGXI RADICAL ").lower() for i in range(214)]
    assert sum(ours == theirs for ours, theirs in zip(RADICALS, official, strict=True)) >= 185
    assert radical_phrase(85) == "with the water radical"


@pytest.mark.parametrize("number", [0, -1, 215])
def test_radical_numbers_outside_the_table_are_refused(number):
    with pytest.raises(IndexError, match="1..214"):
        radical_phrase(number)


PARTS = [("water", "left"), ("work", "right")]


def test_parts_are_named_with_their_places_in_either_order():
    captions = GlyphCaptions(CaptionOptions(**(NEVER | {"places": 1})))
    drawn = {captions.caption(RIVER, "hei", np.random.default_rng(s), PARTS) for s in range(200)}
    assert {"glyph, water on the left, work on the right", "glyph, work on the right, water on the left"} <= drawn
    assert all("water" in text and "work" in text for text in drawn)


def test_a_part_without_a_name_is_not_spoken_of():
    captions = GlyphCaptions(CaptionOptions(**(NEVER | {"places": 1})))
    assert captions.caption(RIVER, "hei", np.random.default_rng(0), PARTS[:1]).startswith("glyph, water ")


def test_the_radical_may_have_its_place_behind_it():
    captions = GlyphCaptions(CaptionOptions(**(NEVER | {"places": 1, "radical": 1})))
    drawn = {captions.caption(RIVER, "hei", np.random.default_rng(s), [], "left") for s in range(50)}
    assert "glyph with the water radical on the left" in drawn and len(drawn) == 3


def test_typed_captions_are_what_people_type():
    captions = GlyphCaptions(CaptionOptions(**(NEVER | {"typed": 1})))
    drawn = {captions.caption(RIVER, "hei", np.random.default_rng(s), PARTS, "left") for s in range(600)}
    for text in (
        "horizontal stacked glyph with the water radical",
        "glyph with the water radical on the left",
        "glyph with water on the left and work on the right",
        "glyph of water beside work",
        "work right of water",
    ):
        assert text in drawn


def test_glyphs_of_which_only_the_parts_are_known():
    captions = GlyphCaptions(CaptionOptions())
    drawn = {captions.of_parts("vertical", [("dawn", "top")], "hei", np.random.default_rng(s)) for s in range(300)}
    assert all("dawn" in text and "radical" not in text for text in drawn)
    assert any(text.startswith("vertical stacked glyph") for text in drawn)
