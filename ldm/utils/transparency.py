"""Images with transparency, on a ground: what is seen of them.

Such an image has 4 channels: red, green, blue and, last, alpha. Alpha is straight: colours are not multiplied by it, as
in a PNG. Colours where alpha is 0 are never seen, and may be anything.
"""

import numpy as np
from PIL import Image

GROUNDS = (0, 255)  # grey levels that images are measured on: what one hides, the other shows
CELL, DARK, LIGHT = 8, 128, 176  # of a checkerboard: side in pixels and grey levels, apart from black and from white


def on_ground(pixels: np.ndarray, ground: int) -> np.ndarray:
    """uint8 (..., 4) on a grey level 0 to 255, uint8 (..., 3): colour * a + ground * (1 - a), rounded."""
    colour, alpha = pixels[..., :3].astype(np.int32), pixels[..., 3:].astype(np.int32)
    return ((colour * alpha + ground * (255 - alpha) + 127) // 255).astype(np.uint8)


def on_grounds(images: np.ndarray) -> list[np.ndarray]:
    """uint8 (n, h, w, 4) on each of `GROUNDS`, (n, h, w, 3); images without alpha, (n, h, w[, c]), as they are."""
    return [on_ground(images, ground) for ground in GROUNDS] if images.shape[3:] == (4,) else [images]


def on_checkerboard(image: Image.Image) -> Image.Image:
    """An image with alpha as RGB on a grey checkerboard; others as they are."""
    if image.mode != "RGBA":
        return image
    row, column = np.indices((image.height, image.width)) // CELL
    board = Image.fromarray(np.where((row + column) % 2, DARK, LIGHT).astype(np.uint8)).convert("RGB")
    board.paste(image, mask=image.getchannel("A"))
    return board


def on_white(image: Image.Image) -> Image.Image:
    """An image with alpha as RGB on white; others as they are."""
    return Image.fromarray(on_ground(np.asarray(image), 255)) if image.mode == "RGBA" else image
