"""Intervals by their closed form, and similarity on pictures whose overlap is known."""

import numpy as np
import pytest

from ldm.evaluation.scores import BITMAP, bitmaps, nearest, share, wilson


def test_wilson_closed_forms():
    z2 = 1.959963984540054**2
    n = 20
    low, high = wilson(0, n)  # nothing found: from 0 to z^2 / (n + z^2)
    assert low == pytest.approx(0) and high == pytest.approx(z2 / (n + z2))
    low, high = wilson(n, n)
    assert high == pytest.approx(1) and low == pytest.approx(n / (n + z2))
    low, high = wilson(n // 2, n)  # a half: symmetric, half width z / (2 sqrt(n + z^2))
    assert (low + high) / 2 == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx((z2 / (n + z2)) ** 0.5 / 2)


def test_wilson_bounds_solve_the_score_equation():
    """Each bound b is a share whose own standard error just reaches the observed one: (p - b)^2 n = z^2 b (1 - b)."""
    z2 = 1.959963984540054**2
    for successes, trials in ((115, 128), (3, 40), (1, 7)):
        for bound in wilson(successes, trials):
            assert (successes / trials - bound) ** 2 * trials == pytest.approx(z2 * bound * (1 - bound))


def test_wilson_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match="from 0 to trials"):
        wilson(3, 2)
    assert wilson(0, 0) == (0, 1)


def test_share_holds_count_share_and_interval():
    assert share([True, False, True, True])["share"] == 0.75
    assert share([]) == {"n": 0, "share": None, "interval": [0, 1]}


def square(top, left, size=12):
    page = np.full((64, 64), 255, np.uint8)
    page[top : top + size, left : left + size] = 0
    return page


def test_nearest_is_intersection_over_union_and_forgives_a_small_move():
    pool = bitmaps(np.stack([square(0, 40), square(20, 20), square(40, 40, 20)]))
    glyphs = bitmaps(np.stack([square(20, 20), square(22, 18), square(20, 26)]))
    index, similarity = nearest(glyphs, pool, chunk=2)
    assert index.tolist() == [1, 1, 1]
    assert similarity[:2] == pytest.approx([1, 1])
    # 6 pixels aside are 3 bitmap pixels; the move takes back 1, so 6x6 squares overlap by 4 columns of 6
    assert similarity[2] == pytest.approx(4 / (6 + 6 - 4))


def test_bitmaps_average_ink():
    page = np.full((1, 64, 64), 255, np.uint8)
    page[0, :, :1] = 0
    small = bitmaps(page)
    assert small.shape == (1, BITMAP, BITMAP)
    np.testing.assert_allclose(small[0, :, 0], 0.5, atol=0.01)
    assert (small[0, :, 1:] == 0).all()
