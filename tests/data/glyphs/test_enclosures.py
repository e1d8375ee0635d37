"""Holes of drawn frames: known to the pixel."""

import numpy as np
import pytest

from ldm.data.glyphs.enclosures import CLOSED, hole, ink_box


def drawn(layout, size=40):
    """Walls two pixels thick at the closed sides of 4 to 36, and a block in the middle."""
    image = np.full((size, size), 255, np.uint8)
    top, bottom, left, right = CLOSED[layout]
    image[4:6, 4:36] = 0 if top else 255
    image[34:36, 4:36] = np.minimum(image[34:36, 4:36], 0 if bottom else 255)
    image[4:36, 4:6] = np.minimum(image[4:36, 4:6], 0 if left else 255)
    image[4:36, 34:36] = np.minimum(image[4:36, 34:36], 0 if right else 255)
    image[15:25, 15:25] = 0
    return image


@pytest.mark.parametrize("layout", CLOSED)
def test_the_hole_is_all_that_the_walls_leave(layout):
    top, bottom, left, right = CLOSED[layout]
    assert hole(drawn(layout), layout) == (6 if top else 4, 34 if bottom else 36, 6 if left else 4, 34 if right else 36)


def test_no_hole_where_the_inner_part_touches_or_is_missing():
    image = drawn("enclosed")
    touching, empty = image.copy(), image.copy()
    touching[15:25, 4:36] = 0
    empty[15:25, 15:25] = 255
    assert hole(touching, "enclosed") is None and hole(empty, "enclosed") is None


def test_a_wall_spans_its_side():
    image = np.full((40, 40), 255, np.uint8)
    image[4:36, 4:6] = image[15:25, 15:25] = 0  # no wall at the top
    assert hole(image, "upper left") is None


def test_the_box_of_ink():
    dark = np.zeros((8, 9), bool)
    dark[2:5, 3:7] = True
    assert ink_box(dark) == (2, 5, 3, 7)
