"""The summary in words: each number with what it is to be compared with, and no line for what was not measured."""

from ldm.evaluation.glyphs.in_words import lines

LAYOUT = {"value": 0.953, "interval": [0.93, 0.971], "ceiling": 0.99, "floor": 0.12}
STROKES = {"value": 3.84, "interval": None, "ceiling": 0.5, "floor": None}


def test_each_number_stands_beside_its_references():
    summary = {
        "layout": LAYOUT,
        "radical": None,
        "character_strokes_error": STROKES,
        "kid": {"CLIP": 0.01234},
        "blank": 0.002,
    }
    found = lines(summary | {"copies": 0.0, "new_and_well_formed": 0.5, "vae_read_the_same": None})
    assert [" ".join(line.split()) for line in found] == [
        "layout 95.3% (95%: 93.0% to 97.1%; real glyphs 99.0%, chance 12.0%)",
        "all phrases: strokes 3.8 off on average (real glyphs 0.5)",
        "KID 0.012 (CLIP); lower is better, other real glyphs are near 0",
        "blank 0.2% of the images have no ink, and count as wrong",
        "copies 0.0% of the glyphs are copies of training images",
        "new and well-formed 50.0% agree with their prompt, are no copies and no existing characters",
    ]
    assert lines({}) == []
