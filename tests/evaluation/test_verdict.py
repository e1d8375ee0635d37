"""The verdict of a report: where a number stands between chance and real images, and the bars of each report."""

import pytest

from ldm.evaluation import clip_report
from ldm.evaluation.glyphs import verdict as glyphs
from ldm.evaluation.images import verdict as images
from ldm.evaluation.verdict import number_bar, share_bar, standing, standing_of


@pytest.mark.parametrize(
    ("value", "chance", "real", "interval", "higher", "said"),
    [
        (0.3, 0.2, 0.6, [0.25, 0.35], True, "25% of the way from chance to real images"),
        (0.3, 0.2, 0.6, [0.15, 0.35], True, "no better than chance, as far as so many images can tell"),
        (0.1, 0.2, 0.6, [0.05, 0.15], True, "no better than chance"),
        (0.22, 0.2, 0.6, [0.21, 0.23], True, "hardly better than chance, 5% of the way from it to real images"),
        (0.59, 0.2, 0.6, None, True, "about as good as real images"),
        (0.9, 0.2, 0.6, None, True, "above real images by this measure"),
        (4.0, 5.0, 1.0, [3.5, 4.5], False, "25% of the way from chance to real images"),  # strokes that are wrong
        (6.0, 5.0, 1.0, [5.5, 6.5], False, "no better than chance"),
        (0.0, None, 0.01, [0.0, 0.03], False, "no worse than real images, 1.0%"),
        (0.5, None, 0.01, [0.4, 0.6], False, "worse than real images, 1.0%"),
        (0.7, 0.5, None, [0.6, 0.8], True, "better than chance, 50.0%"),
        (0.3, 0.5, None, None, True, "no better than chance"),
        (0.3, None, None, None, True, ""),
    ],
)
def test_where_a_value_stands(value, chance, real, interval, higher, said):
    assert standing(value, chance, real, interval, higher) == said


def test_of_few_images_no_more_is_said_than_whether_they_are_above_chance():
    found = {"share": 0.5, "interval": [0.4, 0.6], "floor": 0.1, "ceiling": 0.9, "n": 32}
    assert standing_of(found) == "better than chance; n = 32 is too small to say more"
    assert standing_of(found | {"floor": 0.45}).startswith("no better than chance")
    assert standing_of(found | {"n": 100}) == "50% of the way from chance to real images"


def test_a_bar_has_chance_the_model_and_real_images_as_far_as_they_are_known():
    bar = share_bar(
        "Layout?", "of glyphs are right", {"share": 0.5, "interval": [0.4, 0.6], "floor": 0.0, "ceiling": 1.0}
    )
    assert [(mark.name, mark.text, bar.width(mark)) for mark in bar.marks] == [
        ("chance", "0.0%", 0.0),
        ("this model", "50.0%", 50.0),
        ("real images", "100.0%", 100.0),
    ]
    assert bar.sentence == "50.0% of glyphs are right: 50% of the way from chance to real images."
    assert share_bar("?", "are", {"value": 0.5}).sentence == "50.0% are."
    assert share_bar("?", "are", {"value": 0.5}, higher=False).direction == "Lower is better."
    marks = [("blurred", "chance", 4.0), ("this model", "model", 1.0), ("real", "real", -0.5)]
    bar = number_bar("KID?", "KID.", marks, "{:.2f}", higher=False)
    assert [bar.width(mark) for mark in bar.marks] == [100.0, 25.0, 0.0] and bar.marks[2].text == "-0.50"


def kid(value: float) -> dict:
    return {"kid": {"value": value, "error": 0.01}}


def test_the_five_bars_of_a_glyph_report():
    layout = {"value": 0.9, "interval": [0.88, 0.92], "ceiling": 1.0, "floor": 0.5}
    metrics = {
        "adherence": {"character": {"measures": {"layout": layout, "radical": layout}}, "pair": {"measures": {}}},
        "fidelity": {"encoder": {"generated": kid(2.5), "floor": kid(0.0), "ceiling": {"mirrored": kid(9.8)}}},
        "novelty": {
            "generated": {"copies": {"share": 0.0, "interval": [0.0, 0.1], "n": 300}},
            "real_unseen": {"copies": {"share": 0.01}},
        },
    }
    found = glyphs.bars(metrics)
    assert [bar.title for bar in found] == [
        "Is the layout right?",
        "Is the radical right?",
        "Do they look real?",
        "Are they new?",
    ]
    assert found[0].sentence.endswith("names: 80% of the way from chance to real images.")
    assert (
        found[2].sentence
        == "Kernel distance (KID) to real glyphs by the encoder: nearer than real glyphs that are mirrored."
    )
    assert [mark.text for mark in found[2].marks] == ["9.80", "2.50", "0.00"] and not found[2].higher
    assert found[3].sentence == "0.0% of glyphs are copies of training glyphs: no worse than real images, 1.0%."
    metrics["adherence"]["pair"]["measures"]["both"] = layout
    assert len(glyphs.bars(metrics)) == 5
    assert len(glyphs.bars({"adherence": metrics["adherence"]})) == 3  # some sections alone


def test_the_five_bars_of_a_report_on_ones_own_images():
    share = {"n": 128, "share": 0.4, "interval": [0.3, 0.5], "ceiling": 0.8, "floor": 0.0}
    metrics = {
        "seen_words": share | {"candidates": 100},
        "words": share | {"candidates": 100, "ceiling": 0.16, "weak": True},
        "one_word": share | {"floor": 0.5},
        "likeness": {"drawn": kid(0.2), "training": kid(0.0), "blurred": kid(1.0)},
        "novelty": {"near_copies": {"n": 128, "share": 0.05, "interval": [0.02, 0.1]}},
        "autoencoder": {"psnr": {"value": 30.0}, "floor": {"psnr": 25.0}},
    }
    found = images.bars(metrics)
    assert [bar.sentence for bar in found] == [
        "40.0% of images are nearer to their own caption than to 99 others: 50% of the way from chance to real images.",
        "40.0% of images are nearer to their own caption than to 99 others: better than chance, 0.0%; real images "
        "reach too little by this measure to compare with.",
        "40.0% of images follow when one word of the caption changes: no better than chance, as far as so many images "
        "can tell.",
        "Kernel distance (KID) to held-out images: 80% of the way from blurred to real.",
        "5.0% of images are nearer to a training image than 99% of held-out images are: worse than real images, 1.0%.",
        "Encoded and decoded, held-out images keep a PSNR of 30.0 dB, more than a linear map of the same size.",
    ]
    nothing = metrics | {"seen_words": None, "words": None, "one_word": None, "likeness": None}
    bare = {"autoencoder": {"psnr": {"value": 30.0}, "floor": None}}
    assert [bar.title for bar in images.bars(nothing | bare)] == ["Are they new?", "What does the autoencoder keep?"]


def test_the_bars_of_a_clip_report_stand_beside_chance():
    metrics = {
        "pairs": {
            "n": 10,
            "recall": {"image_to_text_recall@1": 0.8, "text_to_image_recall@1": 0.7, "text_to_image_recall@5": 1.0},
            "chance": {"image_to_text_recall@1": 0.1, "text_to_image_recall@1": 0.1, "text_to_image_recall@5": 0.5},
            "one_phrase_replaced": {"n": 10, "share": 0.9, "interval": [0.6, 1.0]},
        },
        "text": {"pair": {"radical": 0.7, "layout": 1.0}, "later": {"radical": 0.6, "layout": 1.0}},
    }
    found = clip_report.bars(metrics)
    assert [[mark.text for mark in bar.marks] for bar in found] == [
        ["10.0%", "80.0%"],
        ["10.0%", "70.0%"],
        ["50.0%", "90.0%"],
        ["70.0%"],
        ["100.0%"],
    ]
    assert found[0].sentence == "80.0% of images are nearest to their own caption, of 10: better than chance, 10.0%."
