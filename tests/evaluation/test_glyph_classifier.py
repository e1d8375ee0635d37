"""The shipped classifier is as right as its card says, looks at the shape, and its training learns what it should."""

import json

import numpy as np
import pytest
import torch

from ldm.data.glyphs import split_characters
from ldm.data.render import cached_glyphs, style_font
from ldm.errors import UserError
from ldm.evaluation import classifier_training as training
from ldm.evaluation.glyph_classifier import FEATURES, SHIPPED, GlyphClassifier, GlyphNet, to_ink

COUNT = 150  # test characters, in two styles


@pytest.fixture(scope="module")
def classifier():
    return GlyphClassifier()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """(rows of the table, uint8 pictures) of characters the classifier never saw."""
    pytest.importorskip("pylopdf_fonts_zh_cn")
    rows = split_characters()["test"][:COUNT]
    text, cache = "".join(row.char for row in rows), tmp_path_factory.mktemp("cache")
    files = [cached_glyphs(style_font(style), text, 64, cache)[0] / "images.npy" for style in ("hei", "song")]
    return rows * 2, np.concatenate([np.load(file) for file in files])


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
    assert classifier.merged == training.MERGED
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


def test_refuses_floats():
    with pytest.raises(UserError, match="uint8"):
        to_ink(np.zeros((1, 64, 64)))


def test_transposing_twice_is_nothing():
    assert all(training.TRANSPOSED[training.TRANSPOSED[name]] == name for name in training.TRANSPOSED)


def test_balance_draws_a_class_of_m_in_proportion_to_its_root():
    weights = training.draw_weights(["a"] * 16 + ["b"] * 4 + ["c"], balance=0.5)
    assert weights.sum() == pytest.approx(1)
    totals = [weights[:16].sum(), weights[16:20].sum(), weights[20]]
    assert totals == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_augmentation_is_repeatable_and_stays_ink():
    ink = torch.rand(4, 1, 64, 64)
    first, second = (training.augment(ink, torch.Generator().manual_seed(3)) for _ in range(2))
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
    return training.Glyphs(images, layouts, np.array([1, 2] * (count // 2)), np.full(count, 2, np.float32))


def test_training_learns_bars_and_survives_half_precision():
    glyphs = bars(64)
    options = training.Options(steps=30, batch_size=32, width=8, transposed=0.2, ema_decay=0.5, lr=5e-3)
    net = training.fit(glyphs, ["horizontal", "vertical"], options, report=lambda line: None)
    rounded, data = training.half_precision(net)
    report = training.accuracy(rounded, glyphs, ["horizontal", "vertical"], [1, 2])
    assert report["layout"] == 1 and report["layout_per_class"]["vertical"] == {"glyphs": 32, "accuracy": 1}
    assert report["radical_per_class"]["2"]["glyphs"] == 32 and len(data) < 2**20


def test_half_precision_file_loads_exactly(tmp_path):
    from safetensors.torch import load

    net, data = training.half_precision(GlyphNet(3, width=8).eval())
    other = GlyphNet(3, width=8).eval()
    other.load_state_dict({k: v.float() for k, v in load(data).items()})
    x = torch.rand(2, 1, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(net(x), other(x), strict=True))


def test_features_are_what_the_heads_read_and_do_not_depend_on_the_batch(classifier, real, judged):
    features = classifier.embed(real[1][:9], batch_size=4)
    assert features.dtype == np.float32 and features.shape == (9, FEATURES) and features.min() >= 0
    logits = classifier.net.layout(torch.from_numpy(features))
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), judged.layout_probabilities[:9], atol=1e-4)
