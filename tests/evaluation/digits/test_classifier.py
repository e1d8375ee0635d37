"""The classifier of coloured digits agrees with what is drawn."""

import json

import numpy as np
import pytest

from ldm.config.settings import DataOptions
from ldm.data.digits import GROUNDS, INKS, splits
from ldm.evaluation.classifiers import CARD, WEIGHTS
from ldm.evaluation.digits.classifier import (
    DigitClassifier,
    attribute_accuracy,
    digit_images,
    find_ink,
    name_grounds,
    name_inks,
    pen_widths,
    slopes,
)
from ldm.utils.errors import UserError


@pytest.fixture(scope="module")
def data(glyph_cache):
    """The same few handwritings as in the tests of the data: one tracing for both."""
    return splits(DataOptions(source="digits", resolution=32, channels=3, cache_dir=glyph_cache, digits={"limit": 64}))


@pytest.fixture(scope="module")
def real(data):
    """Handwriting that the judge was not trained on: test and held-out, in every ink there."""
    parts = [digit_images(data[name]) for name in ("test", "heldout")]
    return np.concatenate([images for images, _ in parts]), [meta for _, metas in parts for meta in metas]


def test_the_measures_are_right_on_real_handwriting(real):
    images, metas = real
    found = attribute_accuracy(DigitClassifier().predict(images), metas)
    assert found["ink"]["share"] >= 0.99
    assert found["ground"]["share"] >= 0.99
    assert found["slant"]["share"] >= 0.97
    assert found["thickness"]["share"] >= 0.92
    assert found["digit"]["share"] >= 0.93
    assert found["both"]["share"] <= min(found["digit"]["share"], found["ink"]["share"])


def test_the_shipped_judge_says_how_right_it_is_on_unseen_handwriting():
    card = DigitClassifier().card
    assert card["trained_on"]["split"] == "train"
    for name in ("validation", "test", "heldout"):
        assert card[name]["digit"]["share"] >= 0.97
        assert card[name]["ink"]["share"] >= 0.99


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("ink", INKS)
def test_an_ink_is_named_on_every_ground_however_thin_the_stroke(ink, ground):
    cover = np.zeros((32, 32, 1))
    cover[8:24, 15] = 0.6  # no pixel shows the pure ink
    colours = np.array(GROUNDS[ground]), np.array(INKS[ink])
    image = np.rint(colours[0] + cover * (colours[1] - colours[0])).astype(np.uint8)
    found = find_ink(image[None])
    assert name_inks(found) == [ink] and name_grounds(found) == [ground]


def test_an_empty_picture_has_no_ink():
    images = np.full((2, 32, 32, 3), 128, np.uint8)
    assert name_inks(find_ink(images)) == ["", ""]


def test_cover_does_not_depend_on_the_colours():
    shape = np.zeros((32, 32, 1))
    shape[6:26, 10:14] = 1
    pictures = [np.rint(GROUNDS[g] + shape * (np.array(INKS[i]) - GROUNDS[g])) for g in GROUNDS for i in INKS]
    cover = find_ink(np.stack(pictures).astype(np.uint8)).cover
    np.testing.assert_allclose(cover, np.broadcast_to(shape[..., 0], cover.shape), atol=1e-6)


@pytest.mark.parametrize("width", [2, 4])
def test_a_bar_has_its_width_and_a_shift_by_rows_its_slope(width):
    image = np.full((1, 32, 32, 3), 255, np.uint8)
    for y in range(4, 28):
        x = 16 + round((16 - y) * 0.5)
        image[0, y, x : x + width] = (214, 39, 40)
    found = find_ink(image)
    assert slopes(found)[0] == pytest.approx(0.5, abs=0.03)
    image[:] = 255
    image[0, 4:28, 10 : 10 + width] = (214, 39, 40)
    found = find_ink(image)
    assert pen_widths(found)[0] == pytest.approx(width, rel=0.16)
    assert slopes(found)[0] == pytest.approx(0, abs=1e-6)


def test_other_sizes_are_judged_too(data):
    images, _metas = digit_images(data["test"], list(range(32)))
    large = images.repeat(2, axis=1).repeat(2, axis=2)
    judge = DigitClassifier()
    assert judge.predict(large).digits.tolist() == judge.predict(images).digits.tolist()
    with pytest.raises(ValueError, match="uint8"):
        judge.predict(images[..., 0])


def test_a_judge_whose_files_do_not_fit_is_refused(tmp_path):
    with pytest.raises(UserError, match="no digit classifier"):
        DigitClassifier(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"other")
    (tmp_path / CARD).write_text(json.dumps({"sha256": "0"}))
    with pytest.raises(UserError, match="sha256 differs"):
        DigitClassifier(tmp_path)
