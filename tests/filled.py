"""Outlines back to pixels, exactly: the even-odd rule at the centre of every pixel; and what two pictures share."""

import numpy as np
from PIL import Image

from ldm.apps.font.vectorize import Outline

FINE = 16  # times finer than the picture, where a shape is drawn by its formula


def filled(outline: Outline, scale: float = 1.0) -> np.ndarray:
    """What lies inside, bool (scale * height, scale * width)."""
    height, width = round(outline.height * scale), round(outline.width * scale)
    crossings = np.zeros((height, width + 1), int)
    for polygon in outline.polygons():
        for (x0, y0), (x1, y1) in zip(scale * polygon, scale * np.roll(polygon, -1, axis=0), strict=True):
            low, high = sorted((y0, y1))
            rows = np.arange(max(0, int(np.ceil(low - 0.5))), min(height, int(np.ceil(high - 0.5))))
            if len(rows):
                x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                np.add.at(crossings, (rows, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)
    return crossings.cumsum(axis=1)[:, :width] % 2 == 1


def coverage(outline: Outline) -> np.ndarray:
    """How much of each pixel lies inside, (height, width) in [0, 1]."""
    fine = filled(outline, FINE)
    return fine.reshape(outline.height, FINE, outline.width, FINE).mean(axis=(1, 3))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def shape(inside, size: int = 64) -> Image.Image:
    """A black shape on white, antialiased: inside(x, y) says where it is, in pixels."""
    places = (np.arange(size * FINE) + 0.5) / FINE
    fine = inside(*np.meshgrid(places, places))
    grey = 1 - fine.reshape(size, FINE, size, FINE).mean(axis=(1, 3))
    return Image.fromarray((255 * grey).round().astype(np.uint8))


def disc(x, y, radius: float = 20.3):
    return np.hypot(x - 31.7, y - 32.4) < radius


def ring(x, y):
    return disc(x, y) & ~disc(x, y, 11.6)


def square(x, y):
    return (abs(x - 31.3) < 18.2) & (abs(y - 33.1) < 12.6)
