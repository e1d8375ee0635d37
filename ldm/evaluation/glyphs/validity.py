"""Are they glyphs at all? Simple measures of images, compared as distributions with those of real glyphs.

No value is right or wrong by itself: a glyph may have much ink or little. The distance between two halves of the real
images says how small a distance between generated and real ones can be.
"""

from collections.abc import Mapping

import numpy as np

from ldm.evaluation.metrics.ink import ink
from ldm.utils.errors import UserError

DARK, LIGHT = 51, 204  # ink is darker than the first, background lighter than the second; between them is grey
HALF = 127.5  # what is darker belongs to a stroke
FINE = 2  # images are enlarged by this before widths are measured
FLAT = 0.6  # slope of the distance to the edge below which a pixel lies on the middle line of a stroke
SPLITS = 50  # of the real images, for the floor


def greyness(images: np.ndarray) -> np.ndarray:
    """Fraction of pixels that are neither ink nor background, as in blur and smears, float64 (n,); uint8 (n, h, w)."""
    return ((images > DARK) & (images < LIGHT)).mean(axis=(1, 2))


def pieces(images: np.ndarray) -> np.ndarray:
    """Number of connected pieces of ink per image, specks too, int64 (n,); uint8 (n, h, w).

    Pixels that touch at a corner are connected.
    """
    from scipy.ndimage import label

    return np.array([label(image < HALF, structure=np.ones((3, 3)))[1] for image in images], dtype=np.int64)


def stroke_widths(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the stroke width per image, in pixels and squared pixels.

    The width is twice the distance to the edge, taken on the middle lines of the strokes: where that distance, which
    rises by one per pixel on the way in, is nearly flat. A bar of w pixels along the grid has exactly the mean w and
    the variance 0. Where strokes cross they are wider, so no real glyph has the variance 0.

    Args: images: uint8 (n, h, w); outside the image is background.
    Returns: float64 (n,) and (n,); both 0 for an image without ink.
    """
    found = [_widths(image) for image in images]
    return np.array([float(w.mean()) for w in found]), np.array([float(w.var()) for w in found])


def _widths(image: np.ndarray) -> np.ndarray:
    """Widths in pixels on the middle lines of one image, float64 (k,); [0] where there are none."""
    from scipy.ndimage import distance_transform_edt, maximum_filter, zoom

    fine = zoom(image.astype(np.float32), FINE, order=1, mode="nearest", grid_mode=True)
    depth = distance_transform_edt(np.pad(fine < HALF, 1))
    slope = np.hypot(*np.gradient(depth))
    top = depth == maximum_filter(depth, 3)  # the middle of a dot may be a point that is flat nowhere
    middle = (depth > 0) & ((slope < FLAT) | top)
    return 2 * depth[middle] / FINE if middle.any() else np.zeros(1)


def measure_glyphs(images: np.ndarray) -> dict[str, np.ndarray]:
    """All measures, each float64 (n,).

    Args: images: uint8 (n, h, w), dark ink on white, of any size (widths are in its pixels).
    Returns: "ink", "greyness", "pieces", "stroke_width", "stroke_variance".
    Raises: UserError for another dtype or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 3:
        raise UserError(f"images to measure are uint8 (n, h, w), got {images.dtype} {images.shape}: make them grey")
    width, variance = stroke_widths(images)
    return {
        "ink": ink(images),
        "greyness": greyness(images),
        "pieces": pieces(images).astype(np.float64),
        "stroke_width": width,
        "stroke_variance": variance,
    }


def wasserstein_1d(a: np.ndarray, b: np.ndarray) -> float:
    """1-D Wasserstein-1 distance of two samples, in their unit: the area between their distribution functions.

    Source: Ramdas, Garcia, Cuturi 2015, On Wasserstein two sample testing, arXiv 1509.02237, which proves the equality.
    """
    a, b = np.sort(a), np.sort(b)
    values = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(v, values[:-1], side="right") / len(v) for v in (a, b)]
    return float((np.abs(below[0] - below[1]) * np.diff(values)).sum())


def compare_measures(
    generated: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], seed: int = 0
) -> dict[str, dict[str, object]]:
    """The measures of generated images beside those of real ones.

    Args:
        generated, real: measures by name, each (n,), as from `measure_glyphs` or others. Names in both count.
        seed: of the splits of the real images.
    Returns: by name, ready for JSON:
        generated, real: {"mean", "sd"}.
        distance: Wasserstein distance between the two, in the measure's own unit.
        floor, floor_95: mean and 95th percentile of that distance between real images and other real images, over
            SPLITS random splits with as many on one side as there are generated ones (half, if real ones are few).
    Raises: UserError with fewer than one generated or two real images.
    """
    result: dict[str, dict[str, object]] = {}
    for name in generated:
        if name not in real:
            continue
        ours, theirs = np.asarray(generated[name], float), np.asarray(real[name], float)
        if len(ours) < 1 or len(theirs) < 2:
            raise UserError(f"{name}: got {len(ours)} generated and {len(theirs)} real images, need at least 1 and 2")
        floors = _floors(theirs, len(ours), seed)
        result[name] = {
            "generated": _spread(ours),
            "real": _spread(theirs),
            "distance": _round(wasserstein_1d(ours, theirs)),
            "floor": _round(float(np.mean(floors))),
            "floor_95": _round(float(np.quantile(floors, 0.95))),
        }
    return result


def _floors(real: np.ndarray, count: int, seed: int) -> list[float]:
    rng, size = np.random.default_rng(seed), min(count, len(real) // 2)
    orders = [rng.permutation(real) for _ in range(SPLITS)]
    return [wasserstein_1d(order[:size], order[size:]) for order in orders]


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"mean": _round(float(values.mean())), "sd": _round(float(values.std()))}


def _round(value: float) -> float:
    return float(f"{value:.4g}")
