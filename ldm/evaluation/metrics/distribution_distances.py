"""How far generated images are from real ones as a set, by features: distances between two clouds of points.

No number here means anything alone. Two sets of real images are not at distance 0, and a mirrored one is not at
distance infinity; `with_reference_range` gives both beside it, from the same reference and for equally many images.

Features are float (n, d), a row for each image; the work is done in float64. The error beside a number is that of a
jackknife which leaves out a tenth of both sets at a time: what other images and another reference would have changed.
"""

from collections.abc import Callable
from math import sqrt

import numpy as np

CHUNK = 1024  # rows of a matrix of distances that are in memory at once
GROUPS = 10  # of the jackknife


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2)), the squared W2 between Gaussians fitted to both.

    It is biased: of two sets of one distribution it is above 0, about as 1 / n, so compare only sets of one size, or
    `frechet_extrapolated`. Below some n = 2 d it says little.

    Source: Dowson and Landau 1982, J. Multivariate Analysis 12(3); Heusel et al. 2017, arXiv 1706.08500, eq. 6.
    """
    first, second = _both(first, second)
    shift = first.mean(0) - second.mean(0)
    one, two = (
        np.cov(first, rowvar=False).reshape(2 * shift.shape),
        np.cov(second, rowvar=False).reshape(2 * shift.shape),
    )
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    middle = np.linalg.eigvalsh(root @ two @ root).clip(0)
    return max(0.0, float(shift @ shift + np.trace(one) + np.trace(two) - 2 * np.sqrt(middle).sum()))


def frechet_extrapolated(first: np.ndarray, second: np.ndarray, seed: int = 0, points: int = 8) -> float:
    """The Frechet distance at 1 / n = 0 of a line fitted to parts of `first` of n = len / 4 and more; may fall below 0.

    It takes away the bias of `first` only; that of `second` stays, so give a large reference.
    Source: Chong and Forsyth 2020, Effectively unbiased FID, arXiv 1911.07023, section 4 (with random parts here).
    """
    first, second = _both(first, second)
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(max(2, len(first) // 4), len(first), points).astype(int))
    found = [frechet_distance(first[rng.permutation(len(first))[:n]], second) for n in sizes]
    return float(np.polyfit(1 / sizes, found, 1)[1])


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared MMD with the kernel (x y / d + 1)^3, unbiased: 0 on average for one distribution, so it may be below.

    Source: Binkowski et al. 2018, Demystifying MMD GANs, arXiv 1801.01401, section 4 (the kernel distance, KID).
    """
    first, second = _both(first, second)
    return _mmd(first, second, lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3)


def kernel_distance_in_blocks(
    first: np.ndarray, second: np.ndarray, size: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard error of `kernel_distance` over disjoint random blocks of `size` from either set.

    Usually blocks overlap, and the error then shrinks with their number, whatever the data; that of
    disjoint ones is honest. Raises: ValueError: fewer than two blocks.
    """
    first, second = _both(first, second)
    blocks = min(len(first), len(second)) // size
    if blocks < 2 or size < 2:
        raise ValueError(f"two blocks of {size} at least are needed of sets of {len(first)} and {len(second)}")
    rng = np.random.default_rng(seed)
    one, two = (rng.permutation(len(x))[: blocks * size].reshape(blocks, size) for x in (first, second))
    found = np.array([kernel_distance(first[i], second[j]) for i, j in zip(one, two, strict=True)])
    return float(found.mean()), float(found.std(ddof=1) / sqrt(blocks))


def mmd_rbf(first: np.ndarray, second: np.ndarray, bandwidth: float | None = None) -> float:
    """Squared MMD with the kernel exp(-|x - y|^2 / (2 bandwidth^2)), unbiased.

    Args:
        bandwidth: in units of the features; None = `median_distance` of `second`, the reference.
    Source: Gretton et al. 2012, JMLR 13, eq. 3; Jayasumana et al. 2024, CMMD, arXiv 2401.09603, with CLIP's features.
    """
    first, second = _both(first, second)
    width = median_distance(second) if bandwidth is None else bandwidth
    if not width > 0:
        raise ValueError(f"the bandwidth must be above 0, got {width}: the reference may be one point many times")
    return _mmd(first, second, lambda x, y: np.exp(-_squared(x, y) / (2 * width**2)))


def median_distance(points: np.ndarray, limit: int = 1000) -> float:
    """Median Euclidean distance between points, evenly chosen ones of more than `limit`."""
    points = np.asarray(points, np.float64)
    points = points[np.linspace(0, len(points) - 1, min(limit, len(points))).round().astype(int)]
    return float(np.sqrt(np.median(_squared(points, points)[np.triu_indices(len(points), 1)])))


def prdc(generated: np.ndarray, reference: np.ndarray, k: int = 5, chunk: int = CHUNK) -> dict[str, float]:
    """Precision, recall, density and coverage, by balls that reach to each point's k-th neighbour in its own set.

    Precision: fraction of generated points in any reference ball; recall: of reference points in any generated ball.
    Density: mean number of reference balls around a generated point over k, 1 for one distribution, not bounded by 1.
    Coverage: fraction of reference balls that hold a generated point; about 1 - 2^-k for one distribution and size.

    Args:
        k: neighbours, itself not counted; below both sizes.
        chunk: rows of distances in memory at a time: chunk x (the larger size) float64.
    Source: Kynkaanniemi et al. 2019, arXiv 1904.06991, eqs. 1-3; Naeem et al. 2020, arXiv 2002.09797, eqs. 4 and 6.
    """
    generated, reference = _both(generated, reference)
    if not 0 < k < min(len(generated), len(reference)):
        raise ValueError(f"k must be from 1 to below both sizes ({len(generated)}, {len(reference)}), got {k}")
    own, real = _radii(generated, k, chunk), _radii(reference, k, chunk)
    balls = np.zeros(len(generated))
    recalled = np.zeros(len(reference), bool)
    covered = np.zeros(len(reference), bool)
    for start in range(0, len(reference), chunk):
        rows = slice(start, start + chunk)
        distance = _squared(reference[rows], generated)
        inside = distance < real[rows, None]
        balls += inside.sum(0)
        covered[rows] = inside.any(1)
        recalled[rows] = (distance < own).any(1)
    return {
        "precision": float((balls > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(balls.mean() / k),
        "coverage": float(covered.mean()),
    }


def sliced_distance(first: np.ndarray, second: np.ndarray, seed: int = 0) -> float:
    """Sliced W2 over 128 directions (`evaluation.toys`), of as many random points of each as the smaller has."""
    import torch

    from ldm.evaluation.metrics.sliced_wasserstein import sliced_wasserstein

    first, second = _both(first, second)
    n, rng = min(len(first), len(second)), np.random.default_rng(seed)
    one, two = (torch.from_numpy(x[rng.permutation(len(x))[:n]]) for x in (first, second))
    return sliced_wasserstein(one, two)


# ---- all of them ----------------------------------------------------------------------------------------------------


def distances(
    generated: np.ndarray, reference: np.ndarray, seed: int = 0, k: int = 5, bandwidth: float | None = None
) -> dict[str, float]:
    """The values alone: fd, kid, mmd, sliced, precision, recall, density and coverage; quick, without errors."""
    found = {"fd": frechet_distance(generated, reference), "kid": kernel_distance(generated, reference)}
    found |= {"mmd": mmd_rbf(generated, reference, bandwidth), "sliced": sliced_distance(generated, reference, seed)}
    return found | prdc(generated, reference, k)


def fidelity(generated: np.ndarray, reference: np.ndarray, seed: int = 0, k: int = 5, groups: int = GROUPS) -> dict:
    """Every distance of two sets of features, as a dict fit for JSON.

    Args:
        generated: float (n, d); reference: float (m, d); both of at least 4 k rows.
        seed: decides the groups of the jackknife and the subsets.
        groups: of the jackknife; its errors of numbers that are nearly 0 are on the safe side, up to twice too large.
    Returns: {"generated": n, "reference": m} and for each of fd, fd_extrapolated, kid, mmd, sliced, precision, recall,
        density and coverage {"value", "error"}; kid also has "block_mean" and "block_error" where there are two blocks
        of 100. An error of None: none was computed.
    Raises: ValueError: too few rows, features of different widths or not finite.
    """
    generated, reference = _both(generated, reference)
    if min(len(generated), len(reference)) < 4 * k:
        raise ValueError(f"at least {4 * k} rows are needed, got {len(generated)} and {len(reference)}")
    width = median_distance(reference)

    def numbers(one: np.ndarray, two: np.ndarray) -> dict[str, float]:
        return distances(one, two, seed, k, width)

    errors = _jackknife(numbers, generated, reference, groups, seed)
    values = numbers(generated, reference)
    found: dict = {"generated": len(generated), "reference": len(reference)}
    found |= {name: {"value": value, "error": errors[name]} for name, value in values.items()}
    found["fd_extrapolated"] = {"value": frechet_extrapolated(generated, reference, seed), "error": None}
    if min(len(generated), len(reference)) >= 200:
        mean, error = kernel_distance_in_blocks(generated, reference, 100, seed)
        found["kid"] |= {"block_mean": mean, "block_error": error}
    return found


def with_reference_range(
    generated: np.ndarray,
    real: np.ndarray,
    corrupted: dict[str, np.ndarray] | None = None,
    floor: np.ndarray | None = None,
    seed: int = 0,
    k: int = 5,
) -> dict[str, dict]:
    """`fidelity` of generated features beside a floor and ceilings, all against one reference.

    Distances depend on sizes. So the floor and every corrupted set have as many rows as the generated one, or all sets
    as many as the smallest of them.

    Args:
        generated: float (n, d).
        real: float (m, d). Without `floor`, a random part of it, n rows and at most half, becomes the floor and the
            rest the reference; they are disjoint.
        corrupted: name -> float (n', d), features of real images made worse: mirrored, say. The ceilings.
        floor: float (n'', d) of other real images than those in `real`, held out ones, say; all of `real` is then the
            reference.
    Returns: {"generated": ..., "floor": ..., "ceiling": {name: ...}}, each as `fidelity` returns it.
    """
    rng = np.random.default_rng(seed)
    generated, reference = _both(generated, real)
    if floor is None:
        order = rng.permutation(len(reference))
        part = min(len(generated), len(reference) // 2)
        floor, reference = reference[order[:part]], reference[order[part:]]
    sets = {"generated": generated, "floor": floor} | {f"ceiling {name}": x for name, x in (corrupted or {}).items()}
    size = min(map(len, sets.values()))
    drawn = {name: np.asarray(x)[np.sort(rng.permutation(len(x))[:size])] for name, x in sets.items()}
    found = {name: fidelity(x, reference, seed, k) for name, x in drawn.items()}
    ceilings = {name: found[f"ceiling {name}"] for name in (corrupted or {})}
    return {"generated": found["generated"], "floor": found["floor"], "ceiling": ceilings}


# ---- parts ----------------------------------------------------------------------------------------------------------


def _both(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(f"features are (n, d) with one d and two rows at least, got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("features must be finite: check the images and the network that computed them")
    return first, second


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (n, m)."""
    found = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.T)
    return found.clip(0, out=found)


def _radii(points: np.ndarray, k: int, chunk: int) -> np.ndarray:
    """Squared distance of each point to its k-th neighbour, itself not counted, float64 (n,)."""
    parts = []
    for start in range(0, len(points), chunk):
        distance = _squared(points[start : start + chunk], points)
        rows = np.arange(len(distance))
        distance[rows, rows + start] = 0  # and not what rounding left
        parts.append(np.partition(distance, k, axis=1)[:, k])
    return np.concatenate(parts)


def _mmd(first: np.ndarray, second: np.ndarray, kernel: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    """Unbiased squared MMD: the kernel's mean within either set, a point with itself left out, less twice across."""

    def total(x: np.ndarray, y: np.ndarray, same: bool) -> float:
        found = 0.0
        for start in range(0, len(x), CHUNK):
            values = kernel(x[start : start + CHUNK], y)
            found += float(values.sum()) - (float(np.trace(values, start)) if same else 0.0)
        return found

    n, m = len(first), len(second)
    within = total(first, first, True) / (n * (n - 1)) + total(second, second, True) / (m * (m - 1))
    return within - 2 * total(first, second, False) / (n * m)


def _jackknife(
    numbers: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    first: np.ndarray,
    second: np.ndarray,
    groups: int,
    seed: int,
) -> dict[str, float]:
    """Standard errors sqrt((g - 1) / g sum (x_i - mean x)^2), x_i without the i-th part of either set.

    Source: Shao and Wu 1989, A general theory for jackknife variance estimation, Annals of Statistics 17(3).
    """
    rng = np.random.default_rng(seed)
    one, two = (rng.permutation(np.arange(len(x)) % groups) for x in (first, second))
    found = [numbers(first[one != i], second[two != i]) for i in range(groups)]
    scale = sqrt(groups - 1)  # times the deviation over g, not g - 1
    return {name: scale * float(np.std([entry[name] for entry in found])) for name in found[0]}
