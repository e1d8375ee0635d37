"""Is a drawn glyph new? Its nearest training glyph, whatever its place on the page, its weight and its sharpness.

The share of ink that two glyphs have in common does not tell a copy from another character: a copy in a bolder weight
has less in common than two characters that differ in a dot. Two ideas do. (1) A copy is a copy after being moved and
made bolder or lighter, so the sample is: its centre of ink is put upon the other's, and near moves and five weights are
tried. (2) What tells characters apart is in one place, so what counts is the worst place: the greatest mean squared
difference of ink, both blurred, in any window of 7 x 7 of 64 x 64 pixels. Similarity is 1 less its root; 1 is the same.

The threshold is calibrated: copies are planted among moved, bolder, lighter and blurred training glyphs, and real
characters that are not in the training set are the false alarms. To measure it again:

    python -m ldm.evaluation.novelty --calibrate
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ldm.errors import UserError
from ldm.evaluation.spoil import _gauss, reweighted

SIZE = 64  # side at which glyphs are compared
CANVAS = 80  # side of the ring on which they are centred: a move by 16 and less never meets its own other end
CELL = 4  # pixels of a cell of the coarse picture
WEIGHTS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of a sample, see `reweighted`
MOVES = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]  # beyond the centring, in pixels
BLUR = 1.0  # pixels; of both glyphs, before they are compared
WINDOW = 3  # pixels to each side of the window's middle
SHORTLIST = 8  # training glyphs that a sample is compared with in detail
TRIES = 3  # weights and moves of each that are looked at window by window
RING = (np.arange(CANVAS)[:, None] - np.arange(CANVAS) + CANVAS // 2) % CANVAS - CANVAS // 2  # distances on the ring
BLURRING = np.exp(-(RING**2) / (2 * BLUR**2)).astype(np.float32)
BLURRING /= BLURRING.sum(1)
WINDOWING = (abs(RING) <= WINDOW).astype(np.float32) / (2 * WINDOW + 1)


class Pool:
    """Glyphs that others are compared with.

    Args:
        images: uint8 (m, h, w) or (m, h, w, 1), dark ink on white.
    """

    def __init__(self, images: np.ndarray):
        self.images = to_size(images)
        self.features = _coarse(self.images)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Neighbours:
    """The nearest glyph of each of n."""

    index: np.ndarray  # int64 (n,), into the pool; -1 where there was none to compare with
    similarity: np.ndarray  # float32 (n,), at most 1


def nearest(images: np.ndarray, pool: Pool, *, earlier: bool = False, batch: int = 512) -> Neighbours:
    """The most similar glyph of a pool: eight are chosen by coarse overlap and compared in detail.

    Args:
        images: uint8 (n, h, w) or (n, h, w, 1), dark on white.
        earlier: the pool is of these very images, and each is compared with those before it only.
    """
    images = to_size(images)
    index, similarity = np.full(len(images), -1), np.zeros(len(images), np.float32)
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        overlap = _coarse(part) @ pool.features.T
        if earlier:
            overlap[np.arange(len(pool)) >= np.arange(start, start + len(part))[:, None]] = -np.inf
        weights = np.stack([reweighted(part, step) for step in WEIGHTS], axis=1)
        for i, row in enumerate(overlap):
            few = np.argpartition(-row, min(SHORTLIST, len(row)) - 1)[:SHORTLIST]
            few = few[row[few] > -np.inf]
            if len(few):
                found = similarities(weights[i], pool.images[few])
                index[start + i], similarity[start + i] = few[found.argmax()], found.max()
    return Neighbours(index, similarity)


def similarities(weights: np.ndarray, others: np.ndarray) -> np.ndarray:
    """One glyph in its five weights, uint8 (5, 64, 64), against others, uint8 (m, 64, 64): float32 (m,), at most 1."""
    middle = len(weights) // 2
    ours, theirs = _centred(weights, weights[middle : middle + 1]), _centred(others)
    ours, theirs = (BLURRING @ x @ BLURRING for x in (ours, theirs))
    tried = np.concatenate([np.roll(ours, move, (1, 2)) for move in MOVES])
    flat, other = tried.reshape(len(tried), -1), theirs.reshape(len(theirs), -1)
    away = (flat * flat).sum(1) - 2 * other @ flat.T  # squared difference less what is the same for all of a row
    best = np.argsort(away, axis=1)[:, :TRIES]
    worst = WINDOWING @ (tried[best] - theirs[:, None]) ** 2 @ WINDOWING
    return 1 - np.sqrt(worst.max((2, 3)).min(1).clip(0))


# ---- pictures -------------------------------------------------------------------------------------------------------


def to_size(images: np.ndarray) -> np.ndarray:
    """uint8 (n, h, w) or (n, h, w, 1) to uint8 (n, 64, 64). Raises: UserError for another dtype or shape."""
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or images.ndim != 3:
        raise UserError(f"glyphs to compare are uint8 (n, h, w), got {images.dtype} {images.shape}: make them grey")
    if images.shape[1:] == (SIZE, SIZE):
        return images
    kind = Image.Resampling.BOX if min(images.shape[1:]) >= SIZE else Image.Resampling.BICUBIC
    small = [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), kind)) for image in images]
    return np.array(small, dtype=np.uint8).reshape(-1, SIZE, SIZE)


def _centred(images: np.ndarray, by: np.ndarray | None = None) -> np.ndarray:
    """uint8 (n, 64, 64) to ink, float32 (n, 80, 80) in [0, 1], on a ring whose middle is the centre of ink (of `by`)."""
    ink = (255 - images).astype(np.float32) / 255
    weight = ink if by is None else (255 - by).astype(np.float32) / 255
    total, steps = weight.sum((1, 2)).clip(1e-6), np.arange(SIZE, dtype=np.float32)
    down, right = (np.round(CANVAS / 2 - (weight.sum(axis) @ steps) / total).astype(int) for axis in (2, 1))
    ring = np.zeros((len(ink), CANVAS, CANVAS), np.float32)
    for i, (y, x) in enumerate(zip(*np.broadcast_arrays(down, right, ink[:, 0, 0])[:2], strict=True)):
        if 0 <= y <= CANVAS - SIZE and 0 <= x <= CANVAS - SIZE:
            ring[i, y : y + SIZE, x : x + SIZE] = ink[i]
        else:
            ring[i, :SIZE, :SIZE] = ink[i]
            ring[i] = np.roll(ring[i], (y, x), (0, 1))
    return ring


def _coarse(images: np.ndarray, chunk: int = 1024) -> np.ndarray:
    """What the shortlist is chosen by: ink of soft cells of the centred glyph, less its mean, of length 1: (n, 400)."""
    side, parts = CANVAS // CELL, [np.zeros((0, (CANVAS // CELL) ** 2), np.float32)]
    for start in range(0, len(images), chunk):
        ring = _centred(images[start : start + chunk])
        cells = ring.reshape(-1, side, CELL, side, CELL).mean((2, 4))
        near = sum(np.roll(cells, move, (1, 2)) for move in ((0, 1), (0, -1), (1, 0), (-1, 0)))
        flat = (cells / 2 + near / 8).reshape(len(cells), -1)
        flat -= flat.mean(1, keepdims=True)
        parts.append(flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(1e-6))
    return np.concatenate(parts)
