"""Colours: CIEDE2000 against published values, and names of shapes' colours in images."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("skimage")

from scripts.emoji.colours import SWATCHES, ColourNames, difference, shape_colours, swatch_differences, swatch_images
from scripts.emoji.data import read_set
from tests.tiny_emoji import PAINT, tiny_set

# Sharma, Wu and Dalal 2005, The CIEDE2000 color-difference formula, Color Research and Application 30(1), table 1
SHARMA = [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
    ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
    ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
    ((50, -0.001, 2.49), (50, 0.0011, -2.49), 4.7461),
    ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((50, 2.5, 0), (61, -5, 29), 22.8977),
    ((50, 2.5, 0), (56, -27, -3), 31.9030),
    ((50, 2.5, 0), (58, 24, 15), 19.4535),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((63.0109, -31.0961, -5.8663), (62.8187, -29.7946, -4.0864), 1.2630),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
    ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


@pytest.mark.parametrize("one, two, value", SHARMA)
def test_differences_are_the_published_ones(one, two, value):
    first, second = np.array(one, float), np.array(two, float)
    assert difference(first, second) == pytest.approx(value, abs=1e-4) == difference(second, first)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return ColourNames(read_set(tiny_set(tmp_path_factory.mktemp("colours"), patch)))


def heart(fill, outline=None, width=0):
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=fill, outline=outline, width=width)
    return np.asarray(image)


def test_shapes_have_the_colour_they_are_painted_in(names):
    images = np.stack([heart(fill) for fill in PAINT.values()])
    assert names.name(images) == list(PAINT) == names.names and names.accuracy == 1


def test_a_black_outline_is_no_colour_and_black_is_one(names):
    images = np.stack([heart(fill, "black", 5) for fill in PAINT.values()])
    assert names.name(images) == list(PAINT)


def test_a_dark_blue_is_blue_and_nothing_is_nothing(names):
    assert names.name(heart("#1e50a0")[None]) == ["blue"]
    assert names.name(np.full((1, 64, 64, 3), 255, np.uint8)) == [""]
    assert np.isnan(shape_colours(np.full((1, 64, 64, 3), 250, np.uint8))).all()


@pytest.mark.parametrize("size", [16, 64])
def test_swatches_are_twelve_and_a_lost_colour_is_seen(size):
    images = swatch_images(size)
    assert images.shape == (12, size, size, 3) and max(swatch_differences(images).values()) == 0
    grey = images.copy()
    grey[:] = images.mean(3, keepdims=True).astype(np.uint8)
    found = swatch_differences(grey)
    assert found["green"] > 20 and found["purple"] > 20 and found["grey"] == 0 and list(found) == list(SWATCHES)
