"""Images as uint8 arrays (H, W, channels): what `decoding` makes of a file, and `fitted` of an array."""

from typing import Any

import numpy as np
from PIL import Image

from ldm.formats import decoding
from ldm.formats.decoding import MAX_PIXELS, Encoded
from ldm.utils.image_sizes import Size


def decode_image(
    source: Encoded, channels: int = 3, background: int = 255, max_pixels: int = MAX_PIXELS, enough: int = 0
) -> np.ndarray:
    """Decode one image: uint8 array (H, W, channels), upright. Arguments and errors are those of `decoding.decode`."""
    return decode_described(source, channels, background, max_pixels, enough)[0]


def decode_described(source: Encoded, *args: Any, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """As `decode_image`, and what `decoding.decode`, whose arguments these are, says of the file."""
    image, about = decoding.decode(source, *args, **options)
    return _pixels(image), about


def fit_image(pixels: np.ndarray, resolution: int | Size, resize: str, background: int = 255) -> np.ndarray:
    """`decoding.fitted` of an array.

    Args:
        pixels: uint8 (H, W, 1, 3 or 4).
    Returns: uint8 (height, width, same channels).
    """
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return _pixels(decoding.fitted(image, resolution, resize, background))


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, channels), a copy of its own."""
    return np.array(image).reshape(image.height, image.width, -1)
