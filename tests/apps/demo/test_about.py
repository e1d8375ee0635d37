"""What the page says of a model and of a prompt: the sentence, chips, unknown words and what is cut off."""

import json
from pathlib import Path

import pytest
from tiny_model import tiny_tokenizer

from ldm.apps.demo.about import About, facts, sentence
from ldm.apps.demo.prompt_chips import ANY, components, glyph_prompt, layouts, positions, with_word, word_chips
from ldm.apps.demo.prompt_words import Words, glyph_caption_words, hints, listed, words_of
from ldm.data.glyphs.captions import RADICALS, GlyphCaptions
from ldm.data.glyphs.names import component_names
from ldm.models.tokenizer import train_tokenizer
from ldm.utils.assets import shipped_model
from ldm.utils.errors import UserError

CAPTIONS = ["a red heart"] * 30 + ["a blue square"] * 20 + ["a red circle with dots"] * 10 + ["one zebra"]


@pytest.fixture(scope="module")
def words():
    return Words(train_tokenizer(CAPTIONS, 700, 8))


def test_frequent_words_are_whole_and_the_most_frequent_come_first(words):
    found = words.frequent()
    assert {"red", "heart", "blue", "square", "circle", "dots"} <= set(found)
    assert not {"with", "a", "zebra", "art", "eart", "uare"} & set(found)  # common, seldom, or pieces of others
    assert found.index("heart") < found.index("dots") and found.index("square") < found.index("dots")


def test_words_that_no_caption_had_twice_are_named(words):
    assert words.unknown("a RED zebra, 3 giraffes and a heart") == ["zebra", "giraffes", "and"]
    assert hints("a red heart", words) == [] == hints(None, words)
    (said,) = hints("a red giraffe", Words(train_tokenizer(CAPTIONS, 700, 32)))
    assert said == "These words are seldom or never in the captions of the training: giraffe."


def test_of_a_tokenizer_without_words_nothing_is_said():
    plain = Words(tiny_tokenizer())  # every byte is a token
    assert plain.unknown("zebra") == plain.frequent() == []
    assert hints("zebra", plain) == []


def test_what_is_cut_off_is_named(words):
    prompt = "red heart blue square red circle dots heart blue"
    assert words.lost("red heart blue square red circle") == ""  # 6 words and two markers: 8 tokens
    assert words.lost(prompt) == "dots heart blue"
    assert words.lost("red heart blue square red zebra") == "zebra"  # some of its pieces had room
    assert hints(prompt, words) == ["The prompt is too long: “dots heart blue” was cut off."]


def test_looking_at_a_prompt_leaves_the_tokenizer_as_it_is():
    tokenizer = train_tokenizer(CAPTIONS, 700, 8)
    tokenizer("red", truncation=True, padding="max_length", max_length=8)
    before = tokenizer.backend_tokenizer.to_str()
    words = Words(tokenizer)
    assert words.lost("red " * 20) == ("red " * 14).strip()
    assert tokenizer.backend_tokenizer.to_str() == before


def test_many_unknown_words_are_counted():
    assert listed(["a", "b"]) == "a, b" and listed([*"abcdefgh"]) == "a, b, c, d, e, f and 2 more"
    assert words_of(["Wäter, 水 12 x_y", "wäter"]) == ["wäter", "水", "x", "y"]


def test_the_words_of_glyph_captions_are_all_there():
    """Every word of many captions, by the generator that the training uses."""
    import numpy as np

    from ldm.config.settings import CaptionOptions
    from ldm.data.glyphs.dataset import load_table
    from ldm.data.glyphs.names import named_parts, radical_place

    known, rng = glyph_caption_words(), np.random.default_rng(0)
    captions = GlyphCaptions(CaptionOptions(places=0.5, typed=0.3))
    for glyph in load_table()[::97]:
        named, place = named_parts(glyph.char, glyph), radical_place(glyph.char, glyph)
        for style in ("hei", "song"):
            said = captions.caption(glyph, style, rng, named, place)
            assert set(words_of([said])) <= known, said
    assert "spaceship" not in known and "selfie" not in known


def test_a_prompt_of_glyphs_is_said_as_captions_say_it():
    assert glyph_prompt("vertical", "fire", "bottom", 9) == "vertical stacked glyph with fire below, 9 strokes"
    assert glyph_prompt("horizontal", "water") == "horizontal stacked glyph with the water radical"
    assert glyph_prompt(ANY, ANY, ANY, 1) == "glyph, 1 stroke" and glyph_prompt("single", ANY) == "single glyph"
    known = glyph_caption_words()
    for layout in layouts():
        for position in positions(layout):
            assert set(words_of([glyph_prompt(layout, "water", position, 12)])) <= known


def test_only_radicals_are_named_without_a_position():
    other = next(name for name in component_names().values() if name not in RADICALS)
    assert other in components() and other not in components(positions=False) and "water" in components(False)
    assert glyph_prompt(ANY, other, "left") == f"glyph with {other} on the left"
    with pytest.raises(UserError, match=f"{other} is no radical: choose its position too"):
        glyph_prompt(ANY, other)


@pytest.mark.parametrize("change", [{"layout": "round"}, {"component": "<b>"}, {"position": "up"}, {"strokes": 10**9}])
def test_what_is_not_on_offer_is_no_prompt(change):
    with pytest.raises(UserError, match=f"{next(iter(change))} must be one of those on offer"):
        glyph_prompt(**({"layout": ANY, "component": ANY} | change))


def test_positions_fit_the_layout():
    assert positions("horizontal") == (ANY, "left", "right") and positions("enclosed") == (ANY, "around", "inside")
    assert positions("single") == (ANY,) and "top" in positions(ANY)


def test_chips_are_frequent_words_or_those_of_the_examples(words):
    assert word_chips(words, ["a green tulip"]) == words.frequent()
    assert word_chips(Words(tiny_tokenizer()), ["a green tulip with a bee"]) == ["green", "tulip", "bee"]


def test_a_chip_puts_its_word_in_and_takes_it_out():
    assert with_word("", "red") == "red" and with_word("a blue  heart", "red") == "a blue heart red"
    assert with_word("a Red, heart", "red") == "a heart"


def test_a_model_is_described_by_what_its_folder_says():
    emoji = ["a tulip", "a dog", "a cat"]
    assert sentence({}, (3, 64, 96), emoji) == (
        "Generates colour images of 96 x 64 pixels from prompts such as “a tulip” or “a dog”."
    )
    assert sentence({}, (1, 8, 8), []) == "Generates grey images of 8 x 8 pixels, like those it was trained on."
    glyphs = {"data": {"source": "glyphs"}}
    assert "invented Chinese characters, from a layout, a radical," in sentence(glyphs, (1, 64, 64), [])
    glyphs["data"]["glyphs"] = {"captions": {"places": 0.6}}
    assert "from a layout, components and their positions, a meaning" in sentence(glyphs, (1, 128, 128), [])
    runs = {"clip": {"minutes": 20.4}, "ldm": {"minutes": 40.0}, "vae": "?"}
    assert facts({"training": {"data": "emoji", "runs": runs}, "license": "cc-by-4.0"}) == (
        "Trained on emoji, 60 minutes. Licence: cc-by-4.0."
    )
    assert facts({"training": [], "license": 3}) == facts({}) == ""


@pytest.mark.parametrize("config", [{"data": 3, "ldm": []}, {"ldm": {"sampling": {"prompts": "abc"}}}, {"ldm": None}])
def test_odd_settings_of_a_model_do_no_harm(config):
    about = About(config, {}, (3, 8, 8), tiny_tokenizer())
    assert about.examples == about.chips == about.hints("abc") == [] and about.sentence and not about.of_glyphs


def test_a_chinese_character_in_a_prompt_is_answered_by_its_description():
    captions = {"source": "glyphs", "glyphs": {"captions": {"places": 0.6}}}
    about = About({"data": captions}, {}, (1, 8, 8), tiny_tokenizer())
    say = "“horizontal stacked glyph, flesh on the left, branch on the right, 8 strokes”."
    assert about.hints("glyph \u80a2 \u6c34")[1:] == [f"Prompts are in English. For \u80a2 say: {say}"]
    before = About({"data": {"source": "glyphs"}}, {}, (1, 8, 8), tiny_tokenizer())
    assert "with the flesh radical, meaning human limbs, 8 strokes" in before.hints("\u80a2")[-1]
    assert about.hints("glyph") == [] and len(about.hints("\u3042")) == 1


@pytest.mark.parametrize(("model", "chip"), [("emoji", "heart"), ("digits", "purple")])
def test_the_included_models_know_their_words(model, chip):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(shipped_model(model) / "tokenizer", local_files_only=True)
    about = About({}, json.loads(Path(shipped_model(model) / "ldm.json").read_text()), (3, 8, 8), tokenizer)
    assert len(about.examples) >= 3 and about.examples[0] in about.sentence
    assert chip in about.chips and len(about.chips) > 8
    assert about.hints(f"{chip} spaceship")[0].endswith("spaceship.")
