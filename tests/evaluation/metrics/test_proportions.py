"""Intervals by their closed form."""

import pytest

from ldm.evaluation.metrics.proportions import proportion, wilson_interval


def test_wilson_closed_forms():
    z2 = 1.959963984540054**2
    n = 20
    low, high = wilson_interval(0, n)  # nothing found: from 0 to z^2 / (n + z^2)
    assert low == pytest.approx(0) and high == pytest.approx(z2 / (n + z2))
    low, high = wilson_interval(n, n)
    assert high == pytest.approx(1) and low == pytest.approx(n / (n + z2))
    low, high = wilson_interval(n // 2, n)  # a half: symmetric, half width z / (2 sqrt(n + z^2))
    assert (low + high) / 2 == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx((z2 / (n + z2)) ** 0.5 / 2)


def test_wilson_bounds_solve_the_score_equation():
    """Each bound b is a share whose own standard error just reaches the observed one: (p - b)^2 n = z^2 b (1 - b)."""
    z2 = 1.959963984540054**2
    for successes, trials in ((115, 128), (3, 40), (1, 7)):
        for bound in wilson_interval(successes, trials):
            assert (successes / trials - bound) ** 2 * trials == pytest.approx(z2 * bound * (1 - bound))


def test_wilson_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match="from 0 to trials"):
        wilson_interval(3, 2)
    assert wilson_interval(0, 0) == (0, 1)


def test_share_holds_count_share_and_interval():
    assert proportion([True, False, True, True])["share"] == 0.75
    assert proportion([]) == {"n": 0, "share": None, "interval": [0, 1]}
