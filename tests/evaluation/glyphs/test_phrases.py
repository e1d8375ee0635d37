import numpy as np
import pytest

from ldm.config.settings import CaptionOptions
from ldm.data.glyphs.captions import GlyphCaptions
from ldm.data.glyphs.names import PLACES, component_names
from ldm.evaluation.glyphs.phrases import parts_asked_for


@pytest.mark.parametrize(
    "prompt, parts",
    [
        ("glyph with water on the left and horse on the right", [("water", "left"), ("horse", "right")]),
        ("Glyph with Horse on the right, water at the left", [("horse", "right"), ("water", "left")]),
        ("glyph of a tree beside a dog", [("tree", "left"), ("dog", "right")]),
        ("fire under a roof", [("fire", "bottom"), ("roof", "top")]),
        ("a roof above the fire", [("roof", "top"), ("fire", "bottom")]),
        ("dog right of tree", [("dog", "right"), ("tree", "left")]),
        ("long stride next to short-tailed bird", [("long stride", "left"), ("short-tailed bird", "right")]),
        ("gate around ear", [("gate", "around"), ("ear", "inside")]),
        ("an ear in a gate", [("ear", "inside"), ("gate", "around")]),
        ("glyph with gate around and ear inside", [("gate", "around"), ("ear", "inside")]),
        ("glyph with ear in the middle", [("ear", "inside")]),
        ("woman below, roof above", [("woman", "bottom"), ("roof", "top")]),
        ("vertical stacked glyph with the jade radical at the bottom", [("jade", "bottom")]),
        ("glyph with the water radical", []),
        ("horizontal stacked glyph, meaning horse", []),
        ("left and right glyph", []),
        ("waterfall on the left", []),
        ("", []),
    ],
)
def test_prompts_are_read(prompt, parts):
    assert parts_asked_for(prompt) == parts


def test_what_captions_say_of_two_parts_is_read_as_it_was_meant():
    captions, rng = GlyphCaptions(CaptionOptions(plain=0, shuffle=0)), np.random.default_rng(0)
    names = sorted(set(component_names().values()))
    for _ in range(3000):
        layout = ("horizontal", "vertical", "above")[rng.integers(3)]
        places = PLACES.get(layout, ("around", "inside"))
        named = list(zip(map(str, rng.choice(names, 2, replace=False)), places, strict=True))
        caption = captions.of_parts(layout, named, "hei", rng)
        read = parts_asked_for(caption)
        assert set(read) <= set(named), caption
        if not caption.endswith("radical") and "radical," not in caption:
            assert read, caption
        if "radical" not in caption:
            assert set(read) == set(named), caption
