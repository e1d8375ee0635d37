"""Coloured digits: what is said is what is drawn, and what is held out is nowhere else."""

import importlib.util
from collections import Counter

import numpy as np
import pytest

from ldm.config.settings import DataOptions, DigitOptions
from ldm.data import build, digits
from ldm.data.digits import (
    GROUNDS,
    HELD_OUT,
    INKS,
    PAIRS,
    SLANT,
    SPLITS,
    THICKNESS,
    WORDS,
    Handwriting,
    make_item,
    originals,
    phrase,
    split_of,
    split_originals,
    trace,
)
from ldm.utils.errors import UserError


@pytest.fixture(scope="module")
def options(glyph_cache):
    return DataOptions(source="digits", resolution=32, channels=3, cache_dir=glyph_cache, digits={"limit": 64})


@pytest.fixture(scope="module")
def data(options):
    return digits.splits(options)


def bar(width: float, lean: float = 0.0) -> np.ndarray:
    """A straight stroke with a base line, 20 high: uint8 (28, 28)."""
    y, x = np.mgrid[:28, :28] + 0.5
    stroke = np.clip(0.5 + width / 2 - abs(x - 14 - lean * (14 - y)), 0, 1) * ((y > 4) & (y < 24))
    return np.rint(255 * stroke).astype(np.uint8)


def test_the_package_holds_five_hundred_of_each_digit():
    ink, labels = originals()
    assert ink.shape == (5000, 28, 28) and ink.max() == 255
    assert np.bincount(labels).tolist() == [500] * 10


def test_every_original_is_on_one_side():
    splits = split_originals()
    everything = [n for name in SPLITS for n in splits[name]]
    assert sorted(everything) == list(range(5000))
    assert all(split_of(n) == name for name in SPLITS for n in splits[name])
    assert 0.8 < len(splits["train"]) / 5000 < 0.9


def test_a_limit_keeps_the_first_and_shrinks_the_others():
    all_of_them, few = split_originals(), split_originals(100)
    assert few["train"] == all_of_them["train"][:100]
    assert all(len(few[name]) == digits.SMALLEST and few[name] == all_of_them[name][:16] for name in SPLITS[1:])


def test_each_digit_has_one_held_out_ink_and_each_ink_is_seen_with_eight_digits_at_least():
    assert sorted(digit for digit, _ in HELD_OUT) == list(range(10))
    assert set(Counter(ink for _, ink in HELD_OUT).values()) <= {1, 2}
    assert {ink for _, ink in HELD_OUT} == set(INKS)
    assert len(set(PAIRS)) == 80


def test_held_out_pairs_are_drawn_in_their_split_and_nowhere_else(data):
    for name in SPLITS:
        found = {(item.digit, item.ink) for item in data[name].items}
        assert found and all((pair in HELD_OUT) == (name == "heldout") for pair in found)
    train = {(item.digit, item.ink) for item in data["train"].items}
    assert len(train & set(PAIRS)) == 70


def test_all_pairs_are_drawn_when_nothing_is_held_out(options):
    found = digits.splits(options.model_copy(update={"digits": DigitOptions(limit=64, heldout=False)}))
    assert set(found) == {"train", "validation", "test"}
    assert {(item.digit, item.ink) for item in found["train"].items} == set(PAIRS)


def test_training_captions_never_name_a_held_out_pair(data):
    rng = np.random.default_rng(0)
    names = {word: i for i, word in enumerate(WORDS)} | {str(i): i for i in range(10)}
    for _ in range(4):
        for i in range(len(data["train"])):
            words = data["train"].caption(i, rng).split()
            said = [names[word] for word in words if word in names]
            inks = [word for word in words if word in INKS]
            assert not set(HELD_OUT) & {(digit, ink) for digit in said for ink in inks}


def test_captions_say_nothing_but_what_is_drawn(data):
    rng = np.random.default_rng(1)
    for i in range(len(data["train"])):
        item, text = data["train"].items[i], data["train"].caption(i, rng)
        words = set(text.replace("-leaning", "").split()) - {"a", "an", "on", "in", "ground", "digit", "slanted"}
        true = {str(item.digit), WORDS[item.digit], item.ink, item.ground, item.thickness, item.slant}
        assert words <= true, (text, item)
        assert "slanted" not in text or item.slant != "upright"
        assert text == text.lower() and text.isascii()


def test_every_part_is_said_when_its_probability_is_one(data):
    sure = DigitOptions(colour=1, digit=1, ground=1, thickness=1, slant=1, generic=0, words=0, after=0, plain=0)
    captions, item = digits.DigitCaptions(sure), data["train"].items[0]
    lean = "upright" if item.slant == "upright" else f"{item.slant}-leaning"
    article = "an" if item.thickness[0] in "aeiou" else "a"
    wanted = f"{article} {item.thickness} {lean} {item.ink} {item.digit} on a {item.ground} ground"
    assert captions.caption(item, np.random.default_rng(0)) == wanted


def test_phrases_read_as_english():
    assert phrase("7", "red", "white") == "a red 7 on a white ground"
    assert phrase("3", "blue", thickness="thick", lean="slanted") == "a thick slanted blue 3"
    assert phrase("8", "orange") == "an orange 8" and phrase("8") == "an 8" and phrase("one") == "a one"
    assert phrase("4", "green", after=True, thickness="thin") == "a thin 4 in green"


def test_pictures_and_captions_are_the_same_every_time(data, options):
    again = digits.splits(options)["train"]
    for i in (0, 7, 100):
        np.testing.assert_array_equal(data["train"].image(i), again.image(i))
        assert data["train"].caption(i, np.random.default_rng(3)) == again.caption(i, np.random.default_rng(3))
    assert data["train"].fingerprint == again.fingerprint


def test_the_fingerprint_changes_with_the_size_and_with_the_inks(data, options):
    larger = digits.splits(options.model_copy(update={"resolution": 64}))["train"]
    free = digits.splits(options.model_copy(update={"digits": DigitOptions(limit=64, heldout=False)}))["train"]
    assert len({larger.fingerprint, free.fingerprint, data["train"].fingerprint}) == 3
    assert larger.image(0).shape == (64, 64, 3) and larger.image(0).dtype == np.uint8


def test_a_larger_picture_shows_the_same_digit(data, options):
    larger = digits.splits(options.model_copy(update={"resolution": 64}))["train"]
    for i in range(0, len(larger), 37):
        shrunk = larger.image(i).reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert abs(shrunk - data["train"].image(i)).mean() < 4


def test_the_margin_is_ground_and_the_colours_are_near_their_names(data):
    for i in range(0, len(data["train"]), 5):
        item, image = data["train"].items[i], data["train"].image(i).astype(float)
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert abs(edge - GROUNDS[item.ground]).max() <= digits.JITTER + 0.5
        if item.thickness == "thick":
            ink = image.reshape(-1, 3)[abs(image.reshape(-1, 3) - edge[0]).sum(axis=1).argmax()]
            assert abs(ink - INKS[item.ink]).max() <= digits.JITTER + 0.5


@pytest.mark.parametrize("pen", THICKNESS.values())
@pytest.mark.parametrize("lean", [-0.4, 0.0, 0.5])
def test_a_straight_stroke_has_the_width_and_slant_that_is_asked_for(pen, lean):
    field, box = trace(bar(3.0, lean))
    writing = Handwriting(1, field, box)
    item = make_item(0, 0, 1, ["red"])
    for slant in SLANT.values():
        colours = np.array([[0.0] * 3, [255.0] * 3])
        wanted = digits.Item(
            *(getattr(item, name) for name in list(item.__slots__)[:7]), colours, pen, slant, 1.1, (0, 0)
        )
        cover = digits.draw(writing, wanted, 128)[..., 0] / 255.0
        rows = np.arange(48, 80)
        centres = (cover[rows] * np.arange(128)).sum(1) / cover[rows].sum(1)
        assert np.polyfit(-rows, centres, 1)[0] == pytest.approx(slant, abs=0.03)
        assert cover[rows].sum(1).mean() / 4 == pytest.approx(pen, abs=0.35)


def test_no_stroke_is_torn_by_the_thinnest_pen(data):
    from scipy.ndimage import label

    torn = 0
    for writing in list(data["train"].writing.values()):
        whole = label(writing.field.astype(float) < 0.8, np.ones((3, 3)))[1]
        thick = label(writing.field.astype(float) < 1.5, np.ones((3, 3)))[1]
        torn += whole > thick
    assert torn <= 0.1 * len(data["train"].writing)


def test_a_second_reading_comes_from_the_cache_and_a_broken_cache_is_mended(data, options, monkeypatch, tmp_path):
    chosen = list(data["heldout"].writing)[:3]
    first = digits.handwriting(chosen, tmp_path)
    monkeypatch.setattr(digits, "trace", lambda ink: pytest.fail("traced again"))
    np.testing.assert_array_equal(digits.handwriting(chosen, tmp_path)[chosen[0]].field, first[chosen[0]].field)
    monkeypatch.undo()
    next((tmp_path / "digits").glob("*.sealed")).write_bytes(b"half")
    assert digits.handwriting(chosen, tmp_path)[chosen[0]].box == first[chosen[0]].box


def test_build_finds_the_digits_by_their_source(options, data):
    splits = build(options)
    assert splits.train.fingerprint == data["train"].fingerprint and splits.heldout is not None
    meta = data["heldout"].meta(0)
    assert (meta["digit"], meta["ink"]) in HELD_OUT


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="extra 'digits'"):
        digits.digit_file()


def test_grey_pictures_are_refused(options):
    with pytest.raises(UserError, match="data.channels: 3, got 1"):
        digits.splits(options.model_copy(update={"channels": 1}))
