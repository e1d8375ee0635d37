"""The shipped classifier is as right as its card says, and looks at the shape."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save

from ldm.data.glyphs.dataset import load_table, split_characters, split_of
from ldm.data.glyphs.rendering import cached_glyphs, style_font
from ldm.evaluation.glyphs.classifier import (
    FEATURES,
    SHIPPED,
    GlyphClassifier,
    to_ink,
    unseen,
)
from ldm.utils.errors import UserError
from scripts.glyph_classifier.accuracy import component_scores
from scripts.glyph_classifier.data import MERGED

COUNT = 150  # test characters, in two styles
HELD_OUT_RADICAL, COMPONENTS_F1 = 0.7, 0.7  # the least that the shipped weights may get


@pytest.fixture(scope="module")
def classifier():
    return GlyphClassifier()


def pictures(rows, cache):
    """(rows of the table, uint8 pictures), every row in two styles."""
    pytest.importorskip("pylopdf_fonts_zh_cn")
    text = "".join(row.char for row in rows)
    files = [cached_glyphs(style_font(style), text, 64, cache)[0] / "images.npy" for style in ("hei", "song")]
    return rows * 2, np.concatenate([np.load(file) for file in files])


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Characters the classifier never saw."""
    return pictures(split_characters()["test"][:COUNT], tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def judged(classifier, real):
    return classifier.predict(real[1])


def test_layouts_of_unseen_characters_are_as_right_as_the_card_says(classifier, real, judged):
    expected = [classifier.layout_class(row.structure) for row in real[0]]
    right = [got == want for got, want in zip(judged.layouts, expected, strict=True) if want]
    stated = classifier.card["test"]["layout"]
    assert stated >= 0.95
    assert np.mean(right) >= stated - 0.03, "300 pictures: three standard errors are 0.03"


def test_radicals_and_strokes_of_unseen_characters(classifier, real, judged):
    radicals = np.array([row.radical for row in real[0]])
    common = np.isin(radicals, classifier.card["common_radicals"])
    right = (judged.radicals == radicals)[common].mean()
    assert right >= classifier.card["test"]["radical_36_commonest"] - 0.06
    error = np.abs(judged.strokes - [row.strokes for row in real[0]]).mean()
    assert error <= classifier.card["test"]["strokes_mean_error"] + 0.3


def test_radicals_in_combinations_held_out_from_the_generator_are_as_right_as_the_card_says(classifier, tmp_path):
    rows, images = pictures([row for row in split_characters()["heldout"] if unseen(row)], tmp_path)
    found, stated = classifier.predict(images), classifier.card["heldout"]
    assert np.mean(found.radicals == [row.radical for row in rows]) == pytest.approx(stated["radical"], abs=0.01)
    assert stated["radical"] >= HELD_OUT_RADICAL
    assert stated["glyphs"] == len(rows)


def test_components_of_unseen_characters_are_as_right_as_the_card_says(classifier, real, judged):
    labels = classifier.component_labels([row.codepoint for row in real[0]])
    assert labels.shape == judged.components.shape == (len(real[0]), len(classifier.components))
    scores, stated = component_scores(classifier.present(judged), labels), classifier.card["test"]["components"]
    assert scores["f1"] >= stated["f1"] - 0.03 and stated["f1"] >= COMPONENTS_F1


def test_components_shuffled_among_characters_are_mostly_wrong(classifier, real, judged):
    labels = classifier.component_labels([row.codepoint for row in real[0]])
    assert component_scores(classifier.present(judged), np.roll(labels, 7, axis=0))["f1"] < 0.3


def test_half_of_the_held_out_characters_and_all_of_test_are_unseen():
    table = load_table()
    shares = {s: np.mean([unseen(row) for row in table if split_of(row) == s]) for s in ("train", "test", "validation")}
    assert shares == {"train": 0, "test": 1, "validation": 1}
    assert np.mean([unseen(row) for row in table if split_of(row) == "heldout"]) == pytest.approx(0.5, abs=0.05)


def test_a_character_holds_the_components_it_is_labelled_with(classifier):
    labels = classifier.component_labels([ord("明"), ord("想")])
    held = [{classifier.components[i] for i in np.flatnonzero(row)} for row in labels]
    assert held == [{"日", "月"}, {"木", "目", "心"}]


@pytest.mark.parametrize("before, after", [("horizontal", "vertical"), ("vertical", "horizontal")])
def test_a_transposed_glyph_is_judged_by_where_its_parts_are(classifier, real, judged, before, after):
    sure = [i for i, row in enumerate(real[0]) if row.structure == before and judged.layouts[i] == before][:60]
    turned = classifier.predict(real[1][sure].transpose(0, 2, 1)).layouts
    assert np.mean([layout == after for layout in turned]) >= 0.85


def test_a_quarter_turn_changes_the_layout(classifier, real, judged):
    sure = [i for i, layout in enumerate(judged.layouts) if layout == "horizontal"][:60]
    turned = classifier.predict(np.rot90(real[1][sure], axes=(1, 2)).copy()).layouts
    assert np.mean([layout != "horizontal" for layout in turned]) >= 0.8


def test_answers_do_not_depend_on_the_batch_and_sum_to_one(classifier, real, judged):
    again = classifier.predict(real[1][:7, :, :, None], batch_size=3)
    np.testing.assert_allclose(again.layout_probabilities, judged.layout_probabilities[:7], atol=1e-4)
    np.testing.assert_allclose(judged.layout_probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(judged.radical_probabilities.sum(axis=1), 1, atol=1e-5)


def test_other_sizes_are_scaled(classifier, real, judged):
    doubled = real[1][:40].repeat(2, axis=1).repeat(2, axis=2)
    assert classifier.predict(doubled).layouts == judged.layouts[:40]


def test_the_card_names_what_is_merged_and_what_was_held_out(classifier):
    assert classifier.merged == MERGED
    assert classifier.layout_class("two by two") == "triangle" and classifier.layout_class("other") is None
    assert set(classifier.card["test"]["layout_per_class"]) == set(classifier.layouts)
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 4 * 2**20


def test_missing_and_mismatched_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no glyph classifier"):
        GlyphClassifier(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other")
    (tmp_path / "classifier.json").write_text(json.dumps({"sha256": "0"}))
    with pytest.raises(UserError, match="sha256 differs"):
        GlyphClassifier(tmp_path)


def test_a_classifier_without_components_is_refused(tmp_path):
    data = save({"stem": torch.zeros(1)})
    (tmp_path / "model.safetensors").write_bytes(data)
    card = {"sha256": hashlib.sha256(data).hexdigest(), "format": 1, "layouts": []}
    (tmp_path / "classifier.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="format 1"):
        GlyphClassifier(tmp_path)


def test_refuses_floats():
    with pytest.raises(UserError, match="uint8"):
        to_ink(np.zeros((1, 64, 64)))


def test_features_are_what_the_heads_read_and_do_not_depend_on_the_batch(classifier, real, judged):
    features = classifier.embed(real[1][:9], batch_size=4)
    assert features.dtype == np.float32 and features.shape == (9, FEATURES) and features.min() >= 0
    said = classifier.net.heads(torch.from_numpy(features))
    np.testing.assert_allclose(said.components.sigmoid().numpy(), judged.components[:9], atol=1e-4)
    np.testing.assert_allclose(said.layout.softmax(dim=1).numpy(), judged.layout_probabilities[:9], atol=1e-4)
