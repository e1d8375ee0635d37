"""How much of an image is ink."""

import numpy as np

from ldm.utils.transparency import on_grounds


def ink(images: np.ndarray) -> np.ndarray:
    """Fraction of ink per image, float64 (n,) in [0, 1]: 0 for white or clear, 1 for black; uint8 (n, h, w[, c])."""
    images = on_grounds(images)[-1]
    return 1 - images.mean(axis=tuple(range(1, images.ndim)), dtype=np.float64) / 255
