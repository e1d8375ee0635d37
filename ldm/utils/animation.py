"""Pictures one after the other: as a GIF, or as an MP4 that every browser plays.

The MP4 is H.264 in yuv420p, the one kind that every player knows: colours have half as many pixels each way as
brightness. PyAV brings the encoder in its wheel. Neither holds partial transparency: it is shown on a checkerboard.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ldm.utils.transparency import on_checkerboard

if TYPE_CHECKING:
    from PIL import Image

MILLISECONDS = 120  # a frame
LEAST = 256  # pixels of a video's shorter side: players blur what is smaller when they enlarge it
QUALITY = "12"  # x264's constant rate factor: 0 = lossless, 23 = its default, where edges of strokes shimmer


def forth_and_back(images: "Sequence[Image.Image]") -> "list[Image.Image]":
    """The pictures, and those between the ends once more backwards, so that a loop has no jump."""
    return [*images, *images[-2:0:-1]]


def gif(images: "Sequence[Image.Image]", about: str = "") -> bytes:
    """A GIF that plays for ever, with `about` as its comment."""
    buffer = io.BytesIO()
    first, *others = map(on_checkerboard, images)
    rest = {"append_images": others, "duration": MILLISECONDS, "loop": 0}
    first.save(buffer, "GIF", save_all=True, comment=about, **rest)
    return buffer.getvalue()


def mp4(images: "Sequence[Image.Image]", about: str = "") -> bytes:
    """A video of pictures of one size, with `about` as its comment.

    Every pixel is drawn as n x n, so that no side is below `LEAST` and both are even, as H.264 wants them.

    Raises: ModuleNotFoundError without PyAV, which `ldm.cli.main` turns into a line that says what to install.
    """
    from fractions import Fraction

    import av
    from PIL.Image import Resampling

    (width, height), times = images[0].size, 1
    while min(width, height) * times < LEAST or width * times % 2 or height * times % 2:
        times += 1
    buffer, size = io.BytesIO(), (width * times, height * times)
    with av.open(buffer, "w", format="mp4") as film:
        film.metadata["comment"] = about
        stream = film.add_stream(
            "libx264", rate=Fraction(1000, MILLISECONDS), options={"crf": QUALITY, "preset": "slow"}
        )
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for image in images:
            large = on_checkerboard(image).convert("RGB").resize(size, Resampling.NEAREST)
            film.mux(stream.encode(av.VideoFrame.from_image(large)))
        film.mux(stream.encode())
    return buffer.getvalue()
