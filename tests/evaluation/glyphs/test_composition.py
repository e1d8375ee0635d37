"""Ceilings of composition from glyphs whose parts are known, and what of real characters stands beside the scores."""

import numpy as np
import pytest

from ldm.evaluation.glyphs.adherence import Scorer, complete_agreement, forms_of, known_forms
from ldm.evaluation.glyphs.classifier import GlyphClassifier, GlyphPrediction
from ldm.evaluation.glyphs.composition import Recombiner, accepted, facts, real_characters
from ldm.evaluation.glyphs.prompts import PromptSpec, glyph_prompts

ASKED = PromptSpec("component_seen", "water and horse", "horizontal", parts="water left, horse right")


@pytest.fixture(scope="module")
def judge():
    classifier = GlyphClassifier()
    return Scorer(classifier, lambda images: np.full(len(images), "hei"))


def seen_as(judge, layout, components, radical=1, count=1):
    """A prediction of `count` glyphs with exactly these components."""
    present = np.array([[float(c in components) for c in judge.classifier.components]] * count, np.float32)
    kinds = np.zeros((count, len(judge.classifier.layouts)), np.float32)
    radicals = np.full(count, radical)
    return GlyphPrediction([layout] * count, kinds, radicals, np.zeros((count, 214)), present, np.ones(count))


def scores(judge, prediction, spec):
    from ldm.evaluation.glyphs.adherence import Predictions

    found = judge.scores(Predictions(prediction, np.array(["hei"])), [spec])
    return {name: float(values[0]) for name, values in found.items()}


def test_parts_are_read_as_they_are_written():
    assert ASKED.named == [("water", "left"), ("horse", "right")]
    assert PromptSpec("place", "", parts="tanned leather bottom").named == [("tanned leather", "bottom")]
    assert PromptSpec("layout", "").named == []


def test_every_form_of_a_name_counts(judge):
    assert {"\u6c34", "\u6c35"} <= forms_of("water") and {"\u624b", "\u624c"} <= forms_of("hand")
    assert "\u6708" in forms_of("moon") & forms_of("flesh") and forms_of("no such name") == frozenset()
    assert [judge.classifier.components[i] for i in known_forms("hand", judge.classifier.components)]
    assert accepted([ASKED])["water"].startswith("\u6c34")


@pytest.mark.parametrize(
    "layout, components, found",
    [
        ("horizontal", "\u6c35\u99ac", (1, 1, 1)),
        ("vertical", "\u6c34\u99ac", (0, 1, 0)),
        ("horizontal", "\u6c35", (1, 0, 0)),
    ],
)
def test_both_is_layout_and_every_component_in_one_image(judge, layout, components, found):
    got = scores(judge, seen_as(judge, layout, components), ASKED)
    assert (got["layout"], got["components"], got["both"]) == found and np.isnan(got["radical"])


def test_both_of_a_pair_is_layout_and_radical(judge):
    pair = PromptSpec("pair", "", "vertical", 38)
    assert scores(judge, seen_as(judge, "vertical", "", 38), pair)["both"] == 1
    assert scores(judge, seen_as(judge, "vertical", "", 30), pair)["both"] == 0
    assert np.isnan(scores(judge, seen_as(judge, "vertical", "", 30), PromptSpec("layout", "", "vertical"))["both"])


def test_a_component_that_the_classifier_does_not_know_is_not_scored(judge):
    known = list(judge.classifier.components)
    judge.classifier.components = [c for c in known if c not in forms_of("horse")]
    try:
        got = scores(judge, seen_as(judge, "horizontal", "\u6c35"), ASKED)
    finally:
        judge.classifier.components = known
    assert np.isnan(got["components"]) and np.isnan(got["both"])


def test_agreement_counts_components():
    nan = np.array([np.nan])
    parts = {"layout": np.array([1.0]), "radical": nan, "style": nan}
    assert complete_agreement(parts | {"components": np.array([0.0])})[0] == 0
    assert complete_agreement(parts)[0] == 1  # older scores


@pytest.mark.parametrize("radical, layout, count", [(38, "vertical", 55), (102, "horizontal", 345)])
def test_real_characters_of_other_radicals_show_a_held_out_pair(radical, layout, count):
    assert real_characters(PromptSpec("pair", "", layout, radical)) == count


def test_names_that_never_met_are_in_no_training_character():
    for spec in glyph_prompts(("component_unseen",)):
        assert real_characters(spec) == 0, spec.prompt
    first = glyph_prompts(("component_seen",))[::2]
    assert all(real_characters(spec) > 0 for spec in first)


def test_the_places_that_are_not_asked_for_are_named():
    found = facts("place", glyph_prompts(("place",)))
    assert len(found["not_scored"]) + len(glyph_prompts(("place",))) == 30
    assert set(found["real_characters"].values()) - {0} and found["ceiling_of"] == "recombined glyphs"


@pytest.fixture(scope="module")
def recombiner(glyph_cache):
    pytest.importorskip("pylopdf_fonts_zh_cn")
    from ldm.config.settings import DataOptions, GlyphOptions
    from ldm.data.glyphs.dataset import splits

    options = DataOptions(cache_dir=glyph_cache, glyphs=GlyphOptions(limit=1500, styles=["hei"]))
    return Recombiner(splits(options)["train"])


def test_recombined_glyphs_have_what_is_asked_for(recombiner, judge):
    spec = PromptSpec("component_seen", "tree and mouth", "horizontal", parts="tree left, mouth right")
    images = recombiner.images(spec, 8)
    assert images.shape == (8, 64, 64) and images.dtype == np.uint8 and images.min() < 60 and images.max() == 255
    top = recombiner.ceiling([spec], judge)
    assert top["layout"] > 0.8 and top["components"] > 0.5 and top["both"] <= min(top["layout"], top["components"])
    pair = PromptSpec("later", "", "vertical", 30)  # a radical in either place, and anything beside it
    assert len(recombiner.images(pair)) == 6


def test_what_cannot_be_made_has_no_ceiling(recombiner, judge):
    nothing = PromptSpec("place", "", "horizontal", parts="no such name left")
    assert len(recombiner.images(nothing)) == 0 and recombiner.ceiling([nothing], judge) == {}
    assert len(recombiner.images(PromptSpec("pair", "", "lower left", 82))) == 0
