"""Pixels of files and images of networks are inverse."""

import numpy as np

from ldm.utils.image_tensors import to_images, to_pixels


def test_pixels_and_images_are_inverse():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    there = to_images(pixels)
    assert there.min() == -1 and there.max() == 1
    assert (to_pixels(there) == pixels).all()
