"""Sans or serif? A linear probe on how wide the strokes are and how much that varies, fitted to real glyphs.

Strokes of one weight everywhere are what makes a sans; the glyph classifier, which was taught to see through the style,
cannot tell.
"""

import numpy as np

from ldm.evaluation.glyphs.validity import stroke_widths
from ldm.evaluation.metrics.ink import ink

RIDGE = 1.0  # of the least squares on standardised inputs


class StyleProbe:
    """Least-squares classifier of styles.

    Args:
        images: real glyphs, uint8 (n, h, w), dark on white.
        styles: the style of each, n strings of at least two values.
    Raises: ValueError: all are of one style.
    """

    def __init__(self, images: np.ndarray, styles: list[str]):
        self.names = sorted(set(styles))
        if len(self.names) < 2:
            raise ValueError(f"a style probe needs glyphs of two styles or more, got {self.names}")
        x = _strokes(images)
        self.mean, self.scale = x.mean(0), x.std(0) + 1e-6
        x = self._inputs(x)
        targets = np.array([[2.0 * (style == name) - 1 for name in self.names] for style in styles])
        self.weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ targets)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The style of each of the images uint8 (n, h, w): str (n,)."""
        return np.array(self.names)[(self._inputs(_strokes(images)) @ self.weights).argmax(1)]

    def _inputs(self, x: np.ndarray) -> np.ndarray:
        return np.c_[(x - self.mean) / self.scale, np.ones(len(x))]


def _strokes(images: np.ndarray) -> np.ndarray:
    """Per image the mean width, its variation coefficient, and ink, as logarithms, whatever the size: (n, 3).

    An image without strokes counts as one of hair lines.
    """
    mean, variance = stroke_widths(images)
    mean = np.maximum(mean / images.shape[1], 1e-3)
    variation = np.sqrt(variance) / images.shape[1] / mean
    return np.log(np.stack([mean, variation + 1e-2, ink(images) + 1e-3], axis=1))
