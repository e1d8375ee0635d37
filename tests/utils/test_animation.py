"""Films: what a player decodes is what was drawn, sharp to the pixel."""

import io

import numpy as np
import pytest
from PIL import Image

from ldm.utils.animation import LEAST, MILLISECONDS, forth_and_back, gif, mp4
from ldm.utils.transparency import DARK, LIGHT


def noise(size: tuple[int, int], count: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray((rng.random(size[::-1]) > 0.5).astype(np.uint8) * 255) for _ in range(count)]


@pytest.mark.parametrize("size", [(16, 16), (15, 9), (300, 256), (301, 256)])
def test_a_player_sees_every_pixel_of_every_picture_as_it_was_drawn(size):
    av = pytest.importorskip("av")
    images = noise(size)
    with av.open(io.BytesIO(mp4(images, '{"prompt": "水"}'))) as film:
        video = film.streams.video[0]
        assert (video.codec_context.name, video.pix_fmt) == ("h264", "yuv420p")
        assert film.metadata["comment"] == '{"prompt": "水"}' and 1000 / video.average_rate == MILLISECONDS
        frames = [frame.to_ndarray(format="gray") for frame in film.decode(video=0)]
    assert len(frames) == len(images)
    for frame, image in zip(frames, images):
        times = frame.shape[0] // image.height
        assert min(frame.shape) >= LEAST and not np.mod(frame.shape, 2).any()
        np.testing.assert_array_equal(frame > 127, np.kron(image, np.ones((times, times))) > 0)


def test_a_gif_plays_for_ever_and_tells_what_it_shows():
    images = noise((16, 16))
    with Image.open(io.BytesIO(gif(images, "about"))) as film:
        assert (film.n_frames, film.info["loop"], film.info["comment"]) == (3, 0, b"about")
        film.seek(2)
        np.testing.assert_array_equal(film.convert("L"), images[2])


def test_transparent_frames_do_not_pile_up():
    frames = [np.zeros((16, 16, 4), np.uint8) for _ in range(2)]
    for i, frame in enumerate(frames):
        frame[:, 8 * i : 8 * i + 8] = (255, 0, 0, 255)
    images = [Image.fromarray(frame) for frame in frames]
    with Image.open(io.BytesIO(gif(images))) as film:
        film.seek(1)
        second = np.asarray(film.convert("RGB"))
    assert (second[:, 8:] == (255, 0, 0)).all() and set(second[:, :8].ravel()) == {DARK, LIGHT}
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(mp4(images))) as film:
        first = next(film.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert np.abs(first[:, 144:] - DARK).min(2).max() < 60 and first[:, :112, 0].min() > 200


def test_there_and_back_shows_the_ends_once():
    assert forth_and_back("abcd") == list("abcdcb") and forth_and_back("ab") == list("ab")
