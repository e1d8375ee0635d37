"""Small exact measures: shares with intervals, and how near a glyph comes to one of the training set."""

from math import sqrt
from statistics import NormalDist

import numpy as np
from PIL import Image

BITMAP = 32  # side of the bitmaps that glyphs are compared as
MOVES = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]  # shifts that are tried, in bitmap pixels


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), with p = successes / n.

    Returns: lower and upper bound in [0, 1]; (0, 1) when there were no trials.
    Source: Wilson 1927, Probable inference, JASA 22(158).
    """
    if trials == 0:
        return 0.0, 1.0
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be from 0 to trials ({trials}), got {successes}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, n = successes / trials, trials
    middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def share(right) -> dict:
    """A yes-or-no array as numbers for a report: count, share and its 95% Wilson interval."""
    right = np.asarray(right, dtype=bool)
    low, high = wilson(int(right.sum()), right.size)
    mean = round(float(right.mean()), 4) if right.size else None
    return {"n": int(right.size), "share": mean, "interval": [round(low, 4), round(high, 4)]}


def bitmaps(images: np.ndarray) -> np.ndarray:
    """uint8 (n, h, w), white ground, averaged down to ink amounts, float32 (n, 32, 32) in [0, 1]."""
    small = [np.asarray(Image.fromarray(image).resize((BITMAP, BITMAP), Image.Resampling.BOX)) for image in images]
    return 1 - np.array(small, dtype=np.float32).reshape(-1, BITMAP, BITMAP) / 255


def nearest(glyphs: np.ndarray, pool: np.ndarray, chunk: int = 8192) -> tuple[np.ndarray, np.ndarray]:
    """For each glyph the most similar one of a pool, over shifts by one bitmap pixel in each direction.

    Similarity of two ink bitmaps a and b is sum(ab) / (sum(a^2) + sum(b^2) - sum(ab)), the overlap over the union
    (Tanimoto): for black and white pictures exactly intersection over union; 1 only for equal ones.

    Args:
        glyphs: float32 (n, 32, 32), see `bitmaps`.
        pool: float32 (m, 32, 32), m >= 1.
    Returns: index into the pool, int64 (n,), and the similarity, float32 (n,).
    """
    n = len(glyphs)
    best, index = np.full(n, -1, dtype=np.float32), np.zeros(n, dtype=np.int64)
    moved = [(v := _shifted(glyphs, y, x).reshape(n, -1), (v * v).sum(axis=1)[:, None]) for y, x in MOVES]
    for start in range(0, len(pool), chunk):
        part = pool[start : start + chunk].reshape(-1, BITMAP * BITMAP)
        norms = (part * part).sum(axis=1)[None]
        for flat, own in moved:
            overlap = flat @ part.T
            overlap /= np.maximum(own + norms - overlap, 1e-6)
            where = overlap.argmax(axis=1)
            value = overlap[np.arange(n), where]
            better = value > best
            best[better], index[better] = value[better], where[better] + start
    return index, best


def _shifted(glyphs: np.ndarray, y: int, x: int) -> np.ndarray:
    """Every glyph moved down by y and right by x; what leaves the picture is lost, what enters is empty."""
    padded = np.pad(glyphs, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1 - y : 1 - y + BITMAP, 1 - x : 1 - x + BITMAP]
