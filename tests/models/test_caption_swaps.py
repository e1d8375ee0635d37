"""Wrong captions: one phrase or word is another, and it is wrong."""

import numpy as np
import pytest

from ldm.data.glyphs.names import caption_slots
from ldm.models.caption_swaps import CaptionSwaps

SLOTS = {
    "red": ("colour", "red"),
    "crimson": ("colour", "red"),
    "blue": ("colour", "blue"),
    "dark blue": ("colour", "navy"),
    "cat": ("animal", "cat"),
}


def swapped(caption, slots, others=(), times=60):
    swap = CaptionSwaps(slots, others)
    return {swap(caption, np.random.default_rng(seed)) for seed in range(times)}


def test_a_phrase_becomes_another_meaning_of_its_slot():
    assert swapped("a red house", SLOTS) == {"a blue house", "a dark blue house"}  # never crimson
    assert swapped("a dark blue house", SLOTS) == {
        "a red house",
        "a crimson house",
        "a blue house",
    }
    assert swapped("reddish and infra-red", SLOTS) == {"reddish and infra-red"}  # whole words only


def test_a_slot_of_one_meaning_cannot_be_wrong():
    assert swapped("a cat", SLOTS) == {"a cat"}


def test_without_slots_a_word_comes_from_the_same_position():
    others = ["a red cat", "two blue dogs run", "a"]
    assert swapped("a red dog", {}, others) == {"a red cat", "two red dog", "a blue dog", "a red dogs"}
    assert swapped("a", {}, ["a", "a b"]) == {"a"}


@pytest.mark.parametrize(
    "caption, kept",
    [
        ("horizontal stacked glyph with the water radical, 9 strokes, in sans style", 4),
        ("glyph with water on the left and horse on the right", 4),
        ("glyph of three parts one above another", 1),  # 'one' and 'above' are no phrases of their own there
    ],
)
def test_slots_of_glyph_captions(caption, kept):
    slots, found = caption_slots(), swapped(caption, caption_slots(), times=200)
    assert caption not in found and len(found) > 10
    slot_of = {slots[phrase][0] for phrase in slots if phrase in caption}
    assert slot_of and all(text.isascii() and text for text in found)
    starts = {next((i for i, (a, b) in enumerate(zip(caption, text, strict=False)) if a != b), 0) for text in found}
    assert len(starts) >= kept
