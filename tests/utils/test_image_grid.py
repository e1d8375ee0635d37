"""The contact sheet puts each picture where its row and column say."""

import numpy as np
import pytest
from PIL import Image

from ldm.utils.errors import UserError
from ldm.utils.image_grid import LINE, image_grid
from ldm.utils.transparency import DARK, LIGHT


def flat(value, size=(4, 6)):
    return np.full(size, value, dtype=np.uint8)


def test_each_picture_lies_in_its_cell():
    page = np.asarray(image_grid([flat(v) for v in (10, 20, 30, 40, 50)], columns=3, pad=1))
    assert page.shape == (2 * 6, 3 * 8, 3)
    for i, value in enumerate((10, 20, 30, 40, 50)):
        y, x = i // 3 * 6 + 1, i % 3 * 8 + 1
        assert (page[y : y + 4, x : x + 6] == value).all()
    assert (page[6:, 16:] == 0xD8).all(), "the sixth cell is empty"


def test_scale_repeats_pixels_and_labels_add_a_line():
    page = image_grid([np.array([[0, 255]], dtype=np.uint8)], columns=4, labels=["a"], pad=0, scale=3)
    assert page.size == (6, 3 + LINE)
    assert (np.asarray(page)[:3, :3] == 0).all() and (np.asarray(page)[:3, 3:] == 255).all()


def test_borders_surround_only_their_picture():
    page = np.asarray(image_grid([flat(0), flat(0)], columns=2, pad=2, borders=["#00ff00", None]))
    assert (page[0, :10] == (0, 255, 0)).all() and (page[0, 10:] == 0xD8).all()


def test_takes_pil_colour_and_one_channel_alike():
    images = [Image.new("L", (5, 5), 7), np.full((5, 5, 1), 7, np.uint8), np.full((5, 5, 3), 7, np.uint8)]
    assert (np.asarray(image_grid(images, columns=3, pad=0)) == 7).all()


def test_transparency_shows_a_checkerboard_or_is_kept():
    clear, red = np.zeros((8, 8, 4), np.uint8), np.full((8, 8, 4), (255, 0, 0, 255), np.uint8)
    shown = np.asarray(image_grid([clear, red], columns=2, pad=0, scale=2))
    assert shown.shape == (16, 32, 3) and set(shown[:, :16].ravel()) == {DARK, LIGHT}
    assert (shown[:, 16:] == (255, 0, 0)).all()
    images = [Image.fromarray(pixels) for pixels in (clear, red, red)]
    kept = np.asarray(image_grid(images, columns=2, pad=0, mode=None))
    assert kept.shape == (16, 16, 4) and (kept[:8, 8:] == red).all() and (kept[8:, :8] == red).all()
    assert (kept[:8, :8] == 0).all() and (kept[8:, 8:] == 0).all()  # the last cell is empty


def test_a_long_label_never_enters_the_next_cell():
    with_text = np.asarray(image_grid([flat(0), flat(0)], columns=2, labels=["m" * 40, ""], pad=1))
    assert (with_text[6:, 8:] == 0xD8).all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"images": [], "columns": 1},
        {"images": [flat(0)], "columns": 0},
        {"images": [flat(0)], "columns": 1, "labels": ["a", "b"]},
        {"images": [flat(0).astype(float)], "columns": 1},
    ],
)
def test_refuses_in_one_line(arguments):
    with pytest.raises(UserError) as caught:
        image_grid(**arguments)
    assert "\n" not in str(caught.value)
