"""The shipped classifier is as right as its card says, looks at the shape, and its training learns what it should."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from ldm.data.glyphs.dataset import load_table, split_characters, split_of
from ldm.data.glyphs.rendering import cached_glyphs, style_font
from ldm.evaluation.glyphs import classifier_data, classifier_recombination
from ldm.evaluation.glyphs import classifier_training as training
from ldm.evaluation.glyphs.classifier import (
    FEATURES,
    SHIPPED,
    GlyphClassifier,
    GlyphNet,
    component_labels,
    to_ink,
    unseen,
)
from ldm.evaluation.glyphs.classifier_accuracy import accuracy, component_scores
from ldm.utils.errors import UserError

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
    return classifier.judge(real[1])


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
    found, stated = classifier.judge(images), classifier.card["heldout"]
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
    turned = classifier.judge(real[1][sure].transpose(0, 2, 1)).layouts
    assert np.mean([layout == after for layout in turned]) >= 0.85


def test_a_quarter_turn_changes_the_layout(classifier, real, judged):
    sure = [i for i, layout in enumerate(judged.layouts) if layout == "horizontal"][:60]
    turned = classifier.judge(np.rot90(real[1][sure], axes=(1, 2)).copy()).layouts
    assert np.mean([layout != "horizontal" for layout in turned]) >= 0.8


def test_answers_do_not_depend_on_the_batch_and_sum_to_one(classifier, real, judged):
    again = classifier.judge(real[1][:7, :, :, None], batch_size=3)
    np.testing.assert_allclose(again.layout_probabilities, judged.layout_probabilities[:7], atol=1e-4)
    np.testing.assert_allclose(judged.layout_probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(judged.radical_probabilities.sum(axis=1), 1, atol=1e-5)


def test_other_sizes_are_scaled(classifier, real, judged):
    doubled = real[1][:40].repeat(2, axis=1).repeat(2, axis=2)
    assert classifier.judge(doubled).layouts == judged.layouts[:40]


def test_the_card_names_what_is_merged_and_what_was_held_out(classifier):
    assert classifier.merged == classifier_data.MERGED
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


def test_transposing_twice_is_nothing():
    assert all(
        classifier_data.TRANSPOSED[classifier_data.TRANSPOSED[name]] == name for name in classifier_data.TRANSPOSED
    )


def test_balance_draws_a_class_of_m_in_proportion_to_its_root():
    weights = classifier_data.draw_weights(["a"] * 16 + ["b"] * 4 + ["c"], balance=0.5)
    assert weights.sum() == pytest.approx(1)
    totals = [weights[:16].sum(), weights[16:20].sum(), weights[20]]
    assert totals == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_augmentation_is_repeatable_and_stays_ink():
    ink = torch.rand(4, 1, 64, 64)
    first, second = (classifier_data.augment(ink, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, ink)
    assert first.shape == ink.shape and first.min() >= 0 and first.max() <= 1


def bars(count):
    """Two upright bars are 'horizontal' with radical 1, two lying ones 'vertical' with radical 2."""
    rng = np.random.default_rng(0)
    images = np.full((count, 64, 64), 255, np.uint8)
    for i, image in enumerate(images):
        a, b = rng.integers(8, 24), rng.integers(36, 50)
        page = image if i % 2 == 0 else image.T
        page[8:56, a : a + 8] = page[8:56, b : b + 8] = 0
    layouts = ["horizontal", "vertical"] * (count // 2)
    radicals, strokes = np.array([61, 85] * (count // 2)), np.full(count, 2, np.float32)
    return classifier_data.Glyphs(images, layouts, radicals, strokes, [("忄", "日"), ("水", "日")] * (count // 2))


def test_training_learns_bars_and_survives_half_precision():
    glyphs, names, components = bars(64), ["horizontal", "vertical"], ["日", "忄", "水"]
    mixture = classifier_data.Mixture(batch_size=32, transposed=0.2, recombined=0)
    options = training.Options(steps=40, width=8, ema_decay=0.5, lr=5e-3, mixture=mixture)
    net, steps = training.fit(glyphs, names, components, options, report=lambda line: None)
    rounded, data = training.half_precision(net)
    report = accuracy(rounded, glyphs, names, [61, 85], components, threshold=0.5)
    assert steps == 40 and len(data) < 2**21
    assert report["layout"] == 1 and report["layout_per_class"]["vertical"] == {"glyphs": 32, "accuracy": 1}
    assert report["radical_per_class"]["85"] == {"glyphs": 32, "accuracy": 1}
    assert report["components"] == {"precision": 1, "recall": 1, "f1": 1, "all_right": 1}
    assert report["radical_among_components"] == {"glyphs": 64, "accuracy": 1}


def test_training_ends_when_its_time_is_over_and_goes_on_from_weights(tmp_path):
    mixture = classifier_data.Mixture(batch_size=8, recombined=0.5)
    options = training.Options(steps=500, width=8, mixture=mixture, seconds=1e-3, keep=tmp_path / "w", keep_every=1)
    net, steps = training.fit(
        bars(16), ["horizontal", "vertical"], ["日", "忄", "水"], options, report=lambda line: None
    )
    again = training.new_net(2, 5, training.Options(width=8, start=options.keep))
    assert steps == 1
    torch.testing.assert_close(again.radical.weight, net.radical.weight, atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="no weights to start from"):
        training.new_net(2, 3, training.Options(start=tmp_path / "missing"))


def test_the_learning_rate_rises_once_and_falls_to_nothing():
    rates = [training.cycle(done) for done in np.linspace(0, 1, 201)]
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(1) and rates[-1] == pytest.approx(0) and 0 < rates[0] < 0.1
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()


def test_pictures_are_cut_at_their_only_lane():
    assert classifier_recombination.lane(np.array([0, 1, 1, 0, 0, 0, 1, 0], bool)) == 4
    assert classifier_recombination.lane(np.array([1, 0, 1, 0, 1], bool)) is None
    assert classifier_recombination.lane(np.array([1, 1], bool)) is None


def cut(glyphs, components):
    labels = component_labels([part for parts in glyphs.parts for part in parts], components)
    return classifier_recombination.cut(glyphs.images, glyphs.layouts, glyphs.radicals, glyphs.parts, labels)


def test_parts_know_which_of_them_is_the_radical():
    parts = cut(bars(8), ["日", "忄", "水"])
    assert parts.radical.tolist() == [61, 0, 85, 0] * 4 and parts.picture.tolist() == [i // 2 for i in range(16)]
    assert parts.components[:4].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]]
    top, bottom, left, right = parts.box[0]
    assert (top, bottom, right - left) == (8, 56, 8)


def test_a_part_is_drawn_into_its_target_and_stretched_only_so_far():
    images, box = np.full((2, 64, 64), 255, np.uint8), np.array([[10, 30, 20, 40]] * 2)
    images[:, 10:30, 20:40] = images[:, 50:60, 50:60] = 0
    targets = torch.tensor([[30.0, 50.0, 4.0, 34.0], [0.0, 64.0, 0.0, 64.0]])
    small, large = classifier_recombination.place(images, box, targets)[:, 0] > 0.5
    assert small[30:50, 4:34].all() and small.sum() == 20 * 30
    assert large[14:50, 14:50].all() and large.sum() == 36**2, "1.8 times as large, in the middle"


def test_recombined_glyphs_hold_a_radical_and_a_rest_in_both_layouts():
    glyphs, generator = bars(8), torch.Generator().manual_seed(0)
    parts = cut(glyphs, ["日", "忄", "水"])
    ink, across, radical, components = classifier_recombination.recombine(glyphs.images, parts, 64, generator)
    assert ink.shape == (64, 1, 64, 64) and ink.min() >= 0 and ink.max() <= 1
    assert set(radical.tolist()) == {61, 85} and 0 < across.sum() < 64
    assert (components == torch.tensor([[1.0, r == 61, r == 85] for r in radical.tolist()])).all()
    for picture, beside in zip(ink[:, 0] > 0.5, across, strict=True):
        assert classifier_recombination.lane(picture.any(dim=0 if beside else 1).numpy()) is not None


def test_half_precision_file_loads_exactly(tmp_path):
    net, data = training.half_precision(GlyphNet(3, 5, width=8).eval())
    other = GlyphNet(3, 5, width=8).eval()
    other.load_state_dict({k: v.float() for k, v in load(data).items()})
    x = torch.rand(2, 1, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(net(x), other(x), strict=True))


def test_features_are_what_the_heads_read_and_do_not_depend_on_the_batch(classifier, real, judged):
    features = classifier.embed(real[1][:9], batch_size=4)
    assert features.dtype == np.float32 and features.shape == (9, FEATURES) and features.min() >= 0
    said = classifier.net.heads(torch.from_numpy(features))
    np.testing.assert_allclose(said.components.sigmoid().numpy(), judged.components[:9], atol=1e-4)
    np.testing.assert_allclose(said.layout.softmax(dim=1).numpy(), judged.layout_probabilities[:9], atol=1e-4)
