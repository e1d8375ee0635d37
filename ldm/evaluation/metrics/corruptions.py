"""Images made worse, or only different, on purpose: to test measures with.

Images are uint8 (n, h, w), white background 255, ink 0. Nothing here knows what a measure should say of them.
"""

import numpy as np
from PIL import Image

FINE = 4  # a glyph's outline is moved on a grid this much finer than its pixels
WHITE = 255


def noisy(images: np.ndarray, amount: float, seed: int = 0) -> np.ndarray:
    """Normal noise of standard deviation `amount`, in units of the range from ink to background, clipped."""
    noise = np.random.default_rng(seed).normal(0, amount * WHITE, images.shape)
    return (images + noise).round().clip(0, WHITE).astype(np.uint8)


def blurred(images: np.ndarray, pixels: float) -> np.ndarray:
    """A Gaussian of standard deviation `pixels` over each image; what lies outside is white."""
    if pixels == 0:
        return images.copy()
    (_, h, w), ink = images.shape, 255 - images.astype(np.float32)
    return (WHITE - _gauss(h, pixels) @ ink @ _gauss(w, pixels)).round().clip(0, WHITE).astype(np.uint8)


def mirrored(images: np.ndarray, fraction: float = 1.0, seed: int = 0) -> np.ndarray:
    """A fraction of the images, at random, with left and right exchanged; a larger fraction includes a smaller one."""
    chosen = np.random.default_rng(seed).permutation(len(images))[: round(fraction * len(images))]
    images = images.copy()
    images[chosen] = images[chosen, :, ::-1]
    return images


def moved(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Every image shifted by whole pixels; what leaves is lost, what enters is white."""
    _, h, w = images.shape
    pad = max(abs(down), abs(right))
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad)), constant_values=WHITE)
    return padded[:, pad - down : pad - down + h, pad - right : pad - right + w].copy()


def reweighted(images: np.ndarray, step: float) -> np.ndarray:
    """Bolder (step > 0) or lighter: every stroke gets wider or narrower by about `step` / 64 of the image's side.

    A stroke too thin to be narrowed keeps its width, as the hairlines of a light serif face do. The outline is moved on
    a grid four times finer, so steps are multiples of a half at 64 pixels.
    """
    n, h, w = images.shape
    reach = round(abs(step) * max(h, w) / 64 * FINE / 2)
    if reach == 0:
        return images.copy()
    size = (w * FINE, h * FINE)
    large = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) < 128 for image in images]
    ink = np.array(large, dtype=bool).reshape(n, h * FINE, w * FINE)
    if step > 0:
        ink = _grown(ink, reach)
    else:
        narrow = ~_grown(~ink, reach)
        ink = narrow | (ink & ~_grown(narrow, reach + 1))
    covered = np.zeros(images.shape)
    for i in range(FINE**2):
        covered += ink[:, i // FINE :: FINE, i % FINE :: FINE]
    return (WHITE * (1 - covered / FINE**2)).round().astype(np.uint8)


def _grown(ink: np.ndarray, reach: int) -> np.ndarray:
    """Dilation by an octagon: a square and a cross in turn, `reach` steps in all. bool (n, h, w)."""
    for i in range(reach):
        rows, out = ink.copy(), ink
        rows[:, 1:] |= ink[:, :-1]
        rows[:, :-1] |= ink[:, 1:]
        source = rows if i % 2 else out  # a square: along columns what has gone along rows
        out = rows.copy()
        out[:, :, 1:] |= source[:, :, :-1]
        out[:, :, :-1] |= source[:, :, 1:]
        ink = out
    return ink


def _gauss(side: int, pixels: float) -> np.ndarray:
    """Symmetric matrix (side, side) that blurs a row; away from the edges its rows sum to 1."""
    away = np.arange(side)[:, None] - np.arange(side)
    reach = np.arange(-int(4 * pixels) - 1, int(4 * pixels) + 2)
    return (np.exp(-(away**2) / (2 * pixels**2)) / np.exp(-(reach**2) / (2 * pixels**2)).sum()).astype(np.float32)
