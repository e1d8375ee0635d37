"""What is seen of transparent images: closed forms, and the same from files, networks and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.utils.image_tensors import as_seen, premultiplied, seen_channels, to_images, to_pixels
from ldm.utils.transparency import DARK, LIGHT, on_checkerboard, on_ground, on_grounds, on_white

INK = np.array([[[200, 100, 50, 255], [200, 100, 50, 51], [200, 100, 50, 0]]], np.uint8)  # alpha 1, 0.2 and 0


def noise(count=2, channels=4, side=8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)


def test_a_ground_shows_through_what_is_transparent():
    assert on_ground(INK, 0)[0].tolist() == [[200, 100, 50], [40, 20, 10], [0, 0, 0]]
    assert on_ground(INK, 255)[0].tolist() == [[200, 100, 50], [244, 224, 214], [255, 255, 255]]
    black, white = on_grounds(INK[None])
    assert (black[0] == on_ground(INK, 0)).all() and (white[0] == on_ground(INK, 255)).all()


def test_a_ground_is_pillows():
    pixels = noise(1, side=64)[0]
    for ground in (0, 100, 255):
        canvas = Image.new("RGB", (64, 64), (ground,) * 3)
        canvas.paste(Image.fromarray(pixels), mask=Image.fromarray(pixels[..., 3]))
        assert (on_ground(pixels, ground) == np.asarray(canvas)).all()
    assert (np.asarray(on_white(Image.fromarray(pixels))) == on_ground(pixels, 255)).all()


@pytest.mark.parametrize("shape", [(2, 8, 4), (2, 8, 8, 1), (2, 8, 8, 3)])
def test_images_without_alpha_stay_as_they_are(shape):
    images = np.zeros(shape, np.uint8)
    (same,) = on_grounds(images)
    assert same is images
    if len(shape) == 4:
        tensor = to_images(images)
        assert as_seen(tensor) is tensor and premultiplied(tensor) is tensor and seen_channels(shape[3]) == shape[3]
    grey = Image.new("L", (3, 3))
    assert on_checkerboard(grey) is grey and on_white(grey) is grey


def test_networks_see_the_grounds_that_files_have():
    pixels = noise()
    seen = as_seen(to_images(pixels))
    assert seen.shape == (2, seen_channels(4), 8, 8)
    for part, ground in zip(seen.split(3, 1), on_grounds(pixels), strict=True):
        assert np.abs(to_pixels(part).astype(int) - ground).max() <= 1  # a rounding
    torch.testing.assert_close(premultiplied(to_images(pixels))[:, :3], seen[:, :3])
    torch.testing.assert_close(premultiplied(to_images(pixels))[:, 3], to_images(pixels)[:, 3])


def test_colour_counts_as_far_as_it_is_seen():
    """The gradient of a loss with respect to colour is in proportion to alpha: 0 where nothing is seen."""
    images = to_images(INK[None]).requires_grad_()
    as_seen(images).sum().backward()
    torch.testing.assert_close(images.grad[0, :3, 0], torch.tensor([2, 0.4, 0]).expand(3, 3))


def test_a_checkerboard_is_seen_through_holes_alone():
    pixels = np.zeros((16, 24, 4), np.uint8)
    pixels[:, 16:] = (10, 20, 30, 255)
    shown = np.asarray(on_checkerboard(Image.fromarray(pixels)))
    assert shown.shape == (16, 24, 3) and (shown[:, 16:] == (10, 20, 30)).all()
    assert (shown[:8, :8] == LIGHT).all() and (shown[:8, 8:16] == DARK).all() and (shown[8:, :8] == DARK).all()
