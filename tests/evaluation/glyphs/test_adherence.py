"""Scores of pictures whose content is known: right, wrong, not asked for; and what ceiling and floor are."""

from collections import defaultdict

import numpy as np
import pytest

from ldm.data.glyphs.dataset import split_characters
from ldm.evaluation.glyphs.adherence import Scorer, ceiling, complete_agreement, permuted, prompt_specs
from ldm.evaluation.glyphs.classifier import GlyphClassifier
from ldm.evaluation.glyphs.prompts import PromptSpec
from ldm.evaluation.glyphs.samples import glyph_images
from ldm.evaluation.glyphs.style_probe import StyleProbe

pytest.importorskip("pylopdf_fonts_zh_cn")


@pytest.fixture(scope="module")
def splits(glyph_cache):
    from ldm.config.settings import DataOptions, GlyphOptions
    from ldm.data.glyphs.dataset import splits as glyph_splits

    return glyph_splits(DataOptions(cache_dir=glyph_cache, glyphs=GlyphOptions(limit=300)))


@pytest.fixture(scope="module")
def judge(splits):
    classifier, train = GlyphClassifier(), splits["train"]
    styles = [train.meta(i)["style"] for i in range(len(train))]
    return Scorer(classifier, StyleProbe(glyph_images(train), styles))


@pytest.fixture(scope="module")
def real(splits, judge):
    data = splits["test"]
    asked = prompt_specs(data)
    judged = judge(glyph_images(data))
    return asked, judged, judge.scores(judged, asked)


def test_real_characters_agree_with_what_they_are(real):
    asked, _, scores = real
    assert len(asked) >= 32 and all(len(values) == len(asked) for values in scores.values())
    assert np.nanmean(scores["layout"]) > 0.9 and np.nanmean(scores["style"]) > 0.9
    assert np.nanmean(scores["radical"]) > 0.6 and np.nanmean(scores["components_f1"]) > 0.5
    assert np.nanmean(scores["strokes_error"]) < 2


def test_dealt_out_anew_they_do_not(real, judge):
    asked, judged, scores = real
    rng = np.random.default_rng(0)
    deals = [judge.scores(judged, permuted(asked, rng)) for _ in range(20)]
    floor = {name: np.nanmean([np.nanmean(deal[name]) for deal in deals]) for name in scores}
    assert floor["radical"] < 0.3 and floor["components_f1"] < 0.3 and 0.3 < floor["style"] < 0.7
    assert floor["strokes_error"] > 2 * np.nanmean(scores["strokes_error"])


def test_what_is_not_asked_for_is_not_scored(splits, judge):
    judged = judge(glyph_images(splits["test"], [0, 1]))
    scores = judge.scores(judged, [PromptSpec("layout", "horizontal stacked glyph", layout="horizontal")] * 2)
    assert np.isfinite(scores["layout"]).all()
    assert all(np.isnan(scores[name]).all() for name in ("radical", "style", "components_f1", "strokes_error"))
    nothing = judge.scores(judged, [PromptSpec("none", "")] * 2)
    assert all(np.isnan(values).all() for values in nothing.values()) and np.isnan(complete_agreement(nothing)).all()


def test_of_a_blank_image_nothing_is_right(splits, judge):
    real = glyph_images(splits["test"], [0])
    noise = np.random.default_rng(0).integers(253, 256, (2, *real.shape[1:]), np.uint8)
    judged = judge(np.concatenate([real, noise]))
    assert judged.glyphs.blank.tolist() == [False, True, True]
    meta = splits["test"].meta(0)
    for layout in judge.classifier.layouts:
        spec = PromptSpec(
            "character", "", layout=layout, radical=meta["radical"], style=meta["style"], strokes=meta["strokes"],
            codepoint=ord(meta["char"]), parts="water left",
        )  # fmt: skip
        scores = judge.scores(judged, [spec] * 3)
        right = {name: values[1:].tolist() for name, values in scores.items()}
        assert right.pop("strokes_error") == [meta["strokes"]] * 2
        assert all(values == [0, 0] for values in right.values())


def test_agreement_is_all_that_is_asked_for():
    nan = np.nan
    scores = {
        "layout": np.array([1, 1, 0, nan, nan]),
        "radical": np.array([1, 0, nan, 1, nan]),
        "style": np.array([nan, 1, nan, nan, nan]),
    }
    np.testing.assert_array_equal(complete_agreement(scores), [1, 0, 0, 1, nan])


def test_the_ceiling_is_that_of_the_real_glyphs_which_fit_the_prompts():
    real = [PromptSpec("character", "", layout="single"), PromptSpec("character", "", layout="single"),
            PromptSpec("character", "", layout="above")]  # fmt: skip
    scores = {"layout": np.array([1.0, 0.0, 1.0]), "style": np.array([1.0, 1.0, np.nan])}
    asked = [PromptSpec("layout", "a", layout="single")] * 5 + [PromptSpec("layout", "b", layout="above")]
    assert ceiling(asked, real, scores) == {"layout": 0.75}  # each prompt counts once; no style is asked for
    assert ceiling([PromptSpec("layout", "c", layout="below")], real, scores) == {}


def test_what_a_full_caption_leaves_open():
    """The F1 of training characters of the same radical, layout and about as many strokes as the one described."""
    classifier = GlyphClassifier()
    alike = defaultdict(list)
    for row in split_characters(later=True)["train"]:
        alike[row.radical, row.structure].append(row)
    found = []
    for row in split_characters()["test"]:
        true = classifier.component_labels([row.codepoint])
        others = alike[row.radical, row.structure]
        if true.any() and others and row.structure != "other":
            guessed = classifier.component_labels([other.codepoint for other in others])
            f1 = 2 * (guessed & true).sum(1) / (guessed.sum(1) + true.sum())
            apart = np.array([abs(other.strokes - row.strokes) for other in others])
            found.append(f1[apart == apart.min()].mean())
    assert len(found) > 900 and np.mean(found) == pytest.approx(0.34, abs=0.01)
