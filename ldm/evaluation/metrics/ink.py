"""How much of an image is ink."""

import numpy as np


def ink(images: np.ndarray) -> np.ndarray:
    """Fraction of ink per image, float64 (n,) in [0, 1]: 0 for white, 1 for black; uint8 (n, h, w[, c])."""
    return 1 - images.mean(axis=tuple(range(1, images.ndim)), dtype=np.float64) / 255
