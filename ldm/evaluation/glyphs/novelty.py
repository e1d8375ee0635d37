"""Is a generated glyph new? Its nearest training glyph, whatever its position, stroke weight and sharpness.

The ink that two glyphs have in common does not tell a copy from another character: a copy in a bolder weight has less
in common than two characters that differ in a dot. Two ideas do. (1) A copy is still a copy when moved, bolder, lighter
or blurred. So the centres of ink are aligned, and small shifts, five weights and two degrees of sharpness are tried.
(2) Characters differ locally, so what counts is the worst window: the greatest mean squared difference of ink, both a
little blurred, in any 7 x 7 of 64 x 64 pixels. Similarity is 1 minus its root; 1 means the same.

The threshold lies between synthetic copies (moved, bolder, lighter or blurred training glyphs) and real characters that
are not in the training set, which are the false alarms. To measure it again (some minutes on one core):

    python -m scripts.novelty_calibration
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ldm.evaluation.metrics.corruptions import reweighted
from ldm.evaluation.metrics.proportions import proportion
from ldm.evaluation.ocr import OcrResult
from ldm.utils.errors import UserError

COPY = 0.733  # similarity from which a glyph is a copy: `python -m scripts.novelty_calibration`, docs/log.md
READABLE = 0.5  # OCR confidence from which a glyph counts as read
SIZE = 64  # side at which glyphs are compared
CANVAS = 80  # side of the ring on which they are centred, so that no move loses ink
CELL = 4  # pixels of a cell of the coarse image
WEIGHTS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the sample, see `reweighted`
MOVES = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]  # beyond the centring, in pixels
BLUR = 1.0  # pixels; of both glyphs before they are compared
SOFTER = (1.0, 1.28)  # of the other glyph, as if blurred by another 0 and 0.8 pixels
WINDOW = 3  # pixels to each side of the window's middle
SHORTLIST = 8  # training glyphs that a sample is compared with in detail
TRIES = 3  # weights and moves of each that are compared window by window
REFINED = 3  # of them that are tried in every weight as well ...
DOUBT = (0.45, 0.85)  # ... where the similarity is between these

RING = (np.arange(CANVAS)[:, None] - np.arange(CANVAS) + CANVAS // 2) % CANVAS - CANVAS // 2  # distances on the ring
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


def nearest_glyphs(images: np.ndarray, pool: Pool, *, earlier: bool = False, batch: int = 512) -> Neighbours:
    """The most similar glyph of a pool: eight are chosen by coarse overlap and compared in detail.

    Args:
        images: uint8 (n, h, w) or (n, h, w, 1), dark on white.
        earlier: the pool holds these very images, and each is compared only with those before it.
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
                values = _refined(similarities(weights[i], pool.images[few]), weights[i], pool.images[few])
                index[start + i], similarity[start + i] = few[values.argmax()], values.max()
    return Neighbours(index, similarity)


def _refined(values: np.ndarray, weights: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Similarities (m,) with the most similar others tried in every weight too, where the value is in doubt.

    A bold copy of a dense glyph has its gaps filled, and no lighter sample opens them again; but the glyph made bolder
    is filled likewise.
    """
    values = values.copy()
    for j in np.argsort(-values)[:REFINED]:
        if DOUBT[0] < values[j] < DOUBT[1]:
            bolder = np.concatenate([reweighted(others[j : j + 1], step) for step in WEIGHTS])
            values[j] = max(values[j], similarities(bolder, weights[None, len(WEIGHTS) // 2])[0])
    return values


def similarities(weights: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of one glyph in five weights, uint8 (5, 64, 64), to others, uint8 (m, 64, 64): float32 (m,), at most 1."""
    middle = len(weights) // 2
    ours, theirs = _centred(weights, weights[middle : middle + 1]), _centred(others)
    ours = _blurring(BLUR) @ ours @ _blurring(BLUR)
    tried = np.concatenate([np.roll(ours, move, (1, 2)) for move in MOVES])
    flat = tried.reshape(len(tried), -1)
    least = np.full(len(others), np.inf, np.float32)
    for softness in SOFTER:
        other = _blurring(softness) @ theirs @ _blurring(softness)
        away = (flat * flat).sum(1) - 2 * other.reshape(
            len(other), -1
        ) @ flat.T  # without the term that a row has in common
        best = np.argsort(away, axis=1)[:, :TRIES]
        square = WINDOWING @ (tried[best] - other[:, None]) ** 2 @ WINDOWING
        least = np.minimum(least, square.max((2, 3)).min(1))
    return 1 - np.sqrt(least.clip(0))


# ---- what is new ----------------------------------------------------------------------------------------------------


def novelty(
    neighbours: Neighbours,
    agreement: np.ndarray | None = None,
    read: OcrResult | None = None,
    threshold: float = COPY,
) -> dict:
    """How new n generated glyphs are, as a dict fit for JSON; proportions with their Wilson intervals.

    Args:
        neighbours: of the generated glyphs among the training glyphs.
        agreement: bool (n,), whether each agrees with its prompt.
        read: what the OCR reads in each.

    Returns:
        copies: similarity to a training glyph at or above `threshold`.
        existing: read as one character with a confidence of one half or more; only with `read`. The OCR knows only the
            characters of its dictionary.
        new_and_well_formed: agrees with its prompt, is no copy and not existing; only with `agreement` and `read`.
            Whether a reader would take it for a character is decided by the classifier alone.
    """
    similarity = neighbours.similarity
    copies = similarity >= threshold
    found = {
        "copy_from_similarity": threshold,
        "copies": proportion(copies),
        "nearest_median": round(float(np.median(similarity)), 4),
        "nearest_95th_percentile": round(float(np.quantile(similarity, 0.95)), 4),
    }
    if read is None:
        return found
    existing = np.array([len(text) == 1 for text in read.texts]) & (np.asarray(read.confidences) >= READABLE)
    found["existing"] = proportion(existing)
    if agreement is not None:
        found["new_and_well_formed"] = proportion(np.asarray(agreement, bool) & ~copies & ~existing)
    return found


def distinctness(images: Mapping[str, np.ndarray], threshold: float = COPY) -> dict:
    """Do the images of one prompt repeat each other, a sign of mode collapse?

    Args:
        images: prompt -> uint8 (n, h, w).
    Returns: "distinct": proportion of the images to which no earlier one of their prompt is nearly equal; "worst": the
        same for the prompt where it is lowest, by name.
    """
    some = {name: x for name, x in images.items() if len(x)}
    alone = {name: nearest_glyphs(x, Pool(x), earlier=True).similarity < threshold for name, x in some.items()}
    if not alone:
        return {"distinct": proportion([]), "worst": None}
    worst = min(alone, key=lambda name: alone[name].mean())
    return {"distinct": proportion(np.concatenate(list(alone.values()))), "worst": {worst: proportion(alone[worst])}}


# ---- images ---------------------------------------------------------------------------------------------------------


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
    """uint8 (n, 64, 64) to ink, float32 (n, 80, 80) in [0, 1], on a ring, centred by the ink (of `by`)."""
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


def _blurring(pixels: float) -> np.ndarray:
    """Matrix (80, 80) that blurs along the ring by a Gaussian."""
    weights = np.exp(-(RING**2) / (2 * pixels**2)).astype(np.float32)
    return weights / weights.sum(1)
