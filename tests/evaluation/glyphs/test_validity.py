"""Measures of pictures whose ink, pieces and stroke widths are known."""

import numpy as np
import pytest

from ldm.evaluation.glyphs import validity
from ldm.utils.errors import UserError


def blank(size=64):
    return np.full((size, size), 255, np.uint8)


def bar(width, at=20, upright=True):
    """One bar of a known width, 40 pixels long."""
    image = blank()
    page = image if upright else image.T
    page[10:50, at : at + width] = 0
    return image


def disc(diameter):
    y, x = np.mgrid[:64, :64] - 31.5
    return np.where(np.hypot(y, x) <= diameter / 2, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 11])
def test_a_bar_has_its_own_width_everywhere(width, upright):
    mean, variance = validity.stroke_widths(bar(width, upright=upright)[None])
    assert mean == pytest.approx(width) and variance == pytest.approx(0, abs=1e-9)


def test_a_bar_at_the_edge_of_the_picture_is_as_wide():
    assert validity.stroke_widths(bar(4, at=0)[None])[0] == pytest.approx(4)


def test_a_grey_edge_counts_by_where_it_is_half_dark():
    """Three black columns between one of grey darker than half and one of grey lighter than half."""
    image = bar(3)
    image[10:50, 19], image[10:50, 23] = 100, 160
    assert validity.stroke_widths(image[None])[0] == pytest.approx(4, abs=0.5)


@pytest.mark.parametrize("diameter", [10, 20, 40])
def test_a_disc_is_as_wide_as_its_diameter(diameter):
    mean, _ = validity.stroke_widths(disc(diameter)[None])
    assert mean == pytest.approx(diameter, abs=1.5)


def test_a_diagonal_stroke_is_as_wide_across():
    y, x = np.mgrid[:64, :64]
    across = np.abs(y - x) / np.sqrt(2)
    stroke = np.where((across <= 3) & (y + x > 20) & (y + x < 106), 0, 255).astype(np.uint8)
    assert validity.stroke_widths(stroke[None])[0] == pytest.approx(6, abs=0.6)


def test_two_widths_have_the_mean_and_the_variance_between_them():
    image = np.minimum(bar(2, at=10), bar(6, at=40))
    mean, variance = validity.stroke_widths(image[None])
    width = np.array([2.0, 6.0])
    assert mean == pytest.approx(width.mean(), abs=0.3) and variance == pytest.approx(width.var(), abs=0.3)


def test_ink_and_greyness_of_known_pictures():
    half = blank()
    half[:, :32] = 0
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    assert validity.ink(np.stack([blank(), half])).tolist() == [0, 0.5]
    assert validity.ink(ramp[None]) == pytest.approx(0.5)
    assert validity.greyness(ramp[None]) == pytest.approx(152 / 256)  # 52 .. 203
    assert validity.greyness(half[None]) == 0


def test_pieces_are_counted_and_corners_connect():
    three = np.minimum(np.minimum(bar(3, at=5), bar(3, at=20)), bar(3, at=40))
    corner = blank()
    corner[10, 10] = corner[11, 11] = 0
    assert validity.pieces(np.stack([blank(), three, corner])).tolist() == [0, 3, 1]


def test_an_empty_and_a_full_picture_have_measures():
    found = validity.measure_glyphs(np.stack([blank(), np.zeros((64, 64), np.uint8)]))
    assert {name: values[0] for name, values in found.items()} == dict.fromkeys(found, 0)
    assert found["stroke_width"][1] == pytest.approx(64, rel=0.05) and found["pieces"][1] == 1
    assert all(values.dtype == np.float64 and values.shape == (2,) for values in found.values())


def test_distance_is_the_mean_gap_between_ranks():
    """Samples repeated to one length can be paired rank by rank."""
    rng = np.random.default_rng(0)
    for n, m in ((1, 1), (5, 9), (40, 40), (13, 200)):
        a, b = rng.normal(size=n).round(1), rng.normal(1, 2, size=m).round(1)
        gaps = np.abs(np.sort(a.repeat(np.lcm(n, m) // n)) - np.sort(b.repeat(np.lcm(n, m) // m)))
        assert validity.wasserstein_1d(a, b) == pytest.approx(gaps.mean())


def test_a_shift_is_its_own_distance_and_stands_out_from_the_floor():
    real = np.random.default_rng(0).normal(size=400)
    found = validity.compare_measures({"a": real + 0.5, "b": real, "only here": real}, {"a": real, "b": real})
    assert set(found) == {"a", "b"}
    assert found["a"]["distance"] == pytest.approx(0.5, abs=1e-3) and found["b"]["distance"] == 0
    assert found["a"]["floor"] < found["a"]["floor_95"] < 0.5
    assert found["a"]["generated"]["mean"] - found["a"]["real"]["mean"] == pytest.approx(0.5, abs=1e-3)


def test_unseen_real_pictures_lie_at_the_floor():
    rng = np.random.default_rng(1)
    inside = [
        found["distance"] <= found["floor_95"]
        for i in range(60)
        for found in validity.compare_measures(
            {"x": rng.normal(size=100)}, {"x": rng.normal(size=200)}, seed=i
        ).values()
    ]
    assert np.mean(inside) >= 0.85


def test_wrong_pictures_and_too_few_are_refused():
    with pytest.raises(UserError, match="uint8"):
        validity.measure_glyphs(np.zeros((1, 8, 8)))
    with pytest.raises(UserError, match="need at least 1 and 2"):
        validity.compare_measures({"x": np.zeros(1)}, {"x": np.zeros(1)})
