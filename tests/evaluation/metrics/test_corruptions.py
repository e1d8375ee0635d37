"""Spoiled pictures differ from the real ones by exactly what they should."""

import itertools

import numpy as np
import pytest

from ldm.evaluation.metrics.corruptions import blurred, mirrored, moved, noisy, reweighted


def bar(width, side=64):
    """An upright stroke in the middle."""
    page = np.full((1, side, side), 255, np.uint8)
    page[:, 10 : side - 10, side // 2 : side // 2 + width] = 0
    return page


def ink(images):
    return (255 - images.astype(float)).sum() / 255


def test_noise_has_the_asked_deviation_and_stays_in_range():
    grey = np.full((4, 64, 64), 128, np.uint8)
    assert noisy(grey, 0.1).std() == pytest.approx(25.5, rel=0.03)
    assert (noisy(grey, 0.1, seed=1) != noisy(grey, 0.1, seed=2)).any()
    assert (noisy(grey, 0) == grey).all()


def test_blur_keeps_ink_and_has_the_asked_width():
    page = np.full((1, 65, 65), 255, np.uint8)
    page[0, 32, 32] = 0
    spread = np.repeat(page, 2, 0)
    assert (blurred(spread, 0) == spread).all()
    line = bar(1)
    for pixels in (0.7, 1.0, 2.0):
        row = 255 - blurred(line, pixels)[0, 32].astype(float)
        away = np.arange(64) - 32
        assert row.sum() == pytest.approx(255, rel=0.03)
        assert (row * away**2).sum() / row.sum() == pytest.approx(pixels**2, rel=0.1)


def test_blur_agrees_with_an_independent_implementation():
    ndimage = pytest.importorskip("scipy.ndimage")
    page = np.random.default_rng(0).integers(0, 256, (1, 40, 40), np.uint8)
    wanted = 255 - ndimage.gaussian_filter(255.0 - page[0], 1.5, mode="constant")
    assert abs(blurred(page, 1.5)[0] - wanted).max() < 1.5


def test_a_share_is_mirrored_and_a_greater_share_holds_a_smaller_one():
    images = np.random.default_rng(1).integers(0, 256, (20, 8, 8), np.uint8)
    turned = [(mirrored(images, share) != images).any((1, 2)) for share in (0, 0.25, 0.5, 1)]
    assert [int(t.sum()) for t in turned] == [0, 5, 10, 20]
    assert all((b | ~a).all() for a, b in itertools.pairwise(turned))
    assert (mirrored(mirrored(images)) == images).all()


def test_a_move_is_undone_by_its_opposite():
    page = bar(3)
    assert (moved(moved(page, 3, -2), -3, 2) == page).all()
    assert moved(page, 0, 5)[0, 32].argmin() == 37 and moved(page, 2, 0)[0, 11, 32] == 255
    assert (moved(page, 0, 60) == 255).all()


@pytest.mark.parametrize(("step", "width"), [(1, 7), (0.5, 6.5), (0, 6), (-0.5, 5.5), (-1, 5)])
def test_a_weight_step_changes_the_width_of_a_stroke_by_a_64th(step, width):
    middle = slice(25, 40)
    assert ink(reweighted(bar(6), step)[:, middle]) == pytest.approx(15 * width, rel=0.01)
    large = reweighted(bar(12, side=128), step)
    assert ink(large[:, 50:80]) == pytest.approx(30 * 2 * width, rel=0.01)


def test_a_hairline_stays_when_all_else_gets_lighter():
    both = np.minimum(bar(1), moved(bar(6), 0, 15))
    found = reweighted(both, -1)
    assert ink(found[:, 25:40, :40]) == pytest.approx(15, rel=0.05)
    assert ink(found[:, 25:40, 40:]) == pytest.approx(15 * 5, rel=0.02)
