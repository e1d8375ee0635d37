"""Two upright and two lying bars as labelled glyphs."""

import numpy as np

from scripts.glyph_classifier.data import Glyphs


def bars(count):
    """Two upright bars are 'horizontal' with radical 1, two lying ones 'vertical' with radical 2."""
    rng = np.random.default_rng(0)
    images = np.full((count, 64, 64), 255, np.uint8)
    for i, image in enumerate(images):
        a, b = rng.integers(8, 24), rng.integers(36, 50)
        page = image if i % 2 == 0 else image.T
        page[8:56, a : a + 8] = page[8:56, b : b + 8] = 0
    layouts = ["horizontal", "vertical"] * (count // 2)
    radicals, strokes = np.array([61, 85] * (count // 2)), np.full(count, 2, np.float32)
    return Glyphs(images, layouts, radicals, strokes, [("忄", "日"), ("水", "日")] * (count // 2))
