"""Sizes of images and of aspect-ratio buckets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.utils.image_sizes import bucket_sizes, nearest_size, resolution_of, size_of

SQUARES = [(64, 16), (64, 8), (256, 32), (512, 64), (1024, 8)]


def test_a_resolution_is_a_side_or_height_and_width():
    assert [size_of(one) for one in (64, (48, 96), [48, 96])] == [(64, 64), (48, 96), (48, 96)]
    assert [resolution_of(one) for one in ((64, 64), [48, 96])] == [64, (48, 96)]


def test_the_buckets_of_a_square():
    assert bucket_sizes((64, 64), 16) == [(32, 128), (48, 80), (64, 64), (80, 48), (128, 32)]


@pytest.mark.parametrize("side, step", SQUARES)
def test_buckets_have_about_as_many_pixels_in_whole_steps_both_ways(side, step):
    sizes = bucket_sizes((side, side), step)
    for height, width in sizes:
        assert height % step == width % step == 0 and (width, height) in sizes
        assert abs(height * width - side**2) <= min(height, width) * step / 2  # half a step of the longer side
        assert 1 / 4 <= height / width <= 4
    assert (side, side) in sizes and len(sizes) == len(set(sizes)) < 256  # a byte names one


def test_a_size_that_is_not_square_is_among_its_buckets():
    assert bucket_sizes((48, 96), 16) == [(48, 96), (64, 64), (96, 48)]


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_nearest_size_has_the_nearest_aspect_ratio(height, width):
    sizes = bucket_sizes((64, 64), 16)
    chosen = sizes[nearest_size(sizes, (height, width))]

    def ratio(size):
        one = (height / width) / (size[0] / size[1])
        return max(one, 1 / one)

    assert ratio(chosen) <= min(map(ratio, sizes)) * (1 + 1e-9)


def test_an_image_of_a_buckets_own_shape_is_in_it_however_large():
    sizes = bucket_sizes((64, 64), 8)
    assert [nearest_size(sizes, (7 * height, 7 * width)) for height, width in sizes] == list(range(len(sizes)))
    assert math.isclose(sizes[0][1] / sizes[0][0], 4)
