"""Images of more than 8 bits a channel, and of floats: scaled to 8 bits instead of clipped."""

import numpy as np
from PIL import Image

_BITS_TAG, _PHOTOMETRIC_TAG = 258, 262


def eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """A grey image of 12, 16 or 32 bits or of floats, divided by its full scale instead of clipped; and its alpha."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError(f"mode {image.mode} with negative or non-finite values has no declared white")
    levels = np.rint(values * np.float32(255 / _full_scale(image, values, tags))).astype(np.uint8)
    if tags.get(_PHOTOMETRIC_TAG) == 0 and image.mode != "F":  # TIFF "white is zero", inverted by Pillow only at 8 bits
        levels = 255 - levels
    alpha = None
    transparent = image.info.get("transparency")  # one 16-bit level that stands for "nothing here"
    if isinstance(transparent, int):
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.fromarray(levels), alpha


def _full_scale(image: Image.Image, values: np.ndarray, tags) -> float:
    """The value that means white: from the format where it says so, else the smallest usual scale that holds all."""
    top = float(values.max())
    bits = tags.get(_BITS_TAG, (16,))[0]
    if image.mode.startswith("I;16"):
        return 2.0**bits - 1 if top < 2**bits else 65535.0
    if image.format in ("PNG", "PPM"):  # Pillow brings both to 16 bits, whatever their maximum was
        return 65535.0
    if image.mode == "F" and top > 1 and (values != np.floor(values)).any():
        raise ValueError(f"float values up to {top:g}; allowed are 0..1, or whole numbers up to 255 or 65535")
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0, 2.0**31 - 1)
    for scale in scales:
        if top <= scale:
            return scale
    raise ValueError(f"values up to {top:g}; allowed are 0..1, or whole numbers up to 255 or 65535")
