"""How far a number can be trusted: bootstrap intervals, and whether one model is better than another.

Images of one prompt are alike, so a thousand images of ten prompts say nearly as little about other prompts as ten
images do: give `clusters`, and prompts are resampled with all their images. With few of them a plain percentile
interval is too short; it is widened as Student's t is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np

BLOCK = 4_000_000  # random numbers in memory at a time


@dataclass(frozen=True)
class Interval:
    """A number, where it may lie, and its standard error."""

    value: float
    low: float
    high: float
    error: float
    n: int  # values it is made of
    clusters: int  # independent ones among them

    def rounded(self, digits: int = 4) -> dict:
        """Fit for a report: n, clusters, value, error and interval."""
        numbers = {"value": round(self.value, digits), "error": round(self.error, digits)}
        return (
            {"n": self.n, "clusters": self.clusters}
            | numbers
            | {"interval": [round(self.low, digits), round(self.high, digits)]}
        )


@dataclass(frozen=True)
class Comparison:
    """Two models on the same prompts and seeds."""

    difference: Interval  # B - A
    a: float  # mean of A
    b: float  # mean of B
    verdict: str  # 'B better at 95%', 'A better at 95%' or 'no difference seen'

    def rounded(self, digits: int = 4) -> dict:
        """Fit for a report."""
        means = {"a": round(self.a, digits), "b": round(self.b, digits)}
        return means | {"difference": self.difference.rounded(digits), "verdict": self.verdict}


def bootstrap(
    values: np.ndarray,
    *,
    clusters: Sequence | np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of `values`, by resampling them, or clusters of them, with replacement.

    It is the percentile interval, widened for few clusters: the quantiles are not at alpha/2 but where a normal
    variable lies below -sqrt(m / (m - 1)) t, with t the quantile of Student's t with m - 1 degrees of freedom.

    Args:
        values: (n,) or (n, ...), n >= 2 independent rows; booleans count as 1 and 0.
        clusters: (n,) the prompt, say, of each row; at least two different ones. None = each its own.
        confidence: in (0, 1).
        resamples: at least 100.
    Raises: ValueError: what is said above does not hold, or the values are not all finite.
    Source: Hesterberg 2015, What teachers should know about the bootstrap, arXiv 1411.5279 (the expanded interval).
    """
    values = _checked(values, confidence, resamples)
    rows = _cluster_rows(len(values), clusters)
    sums = np.array([values[cluster].sum() for cluster in rows])
    counts = np.array([values[cluster].size for cluster in rows], dtype=float)
    means = _means(sums, counts, resamples, seed)
    low, high = np.quantile(means, _levels(confidence, len(rows)))
    return Interval(float(values.mean()), float(low), float(high), float(means.std(ddof=1)), len(values), len(rows))


def paired(
    a: np.ndarray,
    b: np.ndarray,
    clusters: Sequence | np.ndarray | None = None,
    *,
    higher_is_better: bool = True,
    names: tuple[str, str] = ("A", "B"),
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Is model B better than model A, on the same prompts and seeds?

    Args:
        a, b: one measure of each image, in the same order: (n,), or (seeds, prompts), where a column is one prompt.
        clusters: (n,) the prompt of each image; None = each its own, or, of a matrix, its columns.
        higher_is_better: whether a greater value is the better one.
    Returns: means, the difference B - A with its interval, and a verdict: a model is better if the interval leaves out
        0. Of two equal models about 1 - confidence of all comparisons name a better one: compare few things.
    Raises: ValueError: different shapes, and what `bootstrap` says.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    if a.shape != b.shape:
        raise ValueError(f"both models need a value for every prompt and seed, got {a.shape} and {b.shape}")
    if a.ndim == 2 and clusters is None:
        clusters = np.broadcast_to(np.arange(a.shape[1]), a.shape).ravel()
    found = bootstrap((b - a).ravel(), clusters=clusters, confidence=confidence, resamples=resamples, seed=seed)
    return Comparison(found, float(a.mean()), float(b.mean()), _verdict(found, higher_is_better, names, confidence))


def over_seeds(values: Sequence[float]) -> dict:
    """Mean over runs or sets of seeds and the spread (standard deviation, n - 1) between them.

    Args:
        values: one number for each seed, at least three: two cannot show a spread.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < 3:
        raise ValueError(f"at least three seeds are needed for a spread, got {numbers.shape}")
    return {
        "mean": float(numbers.mean()),
        "spread": float(numbers.std(ddof=1)),
        "error": float(numbers.std(ddof=1) / sqrt(len(numbers))),
        "seeds": len(numbers),
        "each": numbers.tolist(),
    }


def student_t(probability: float, degrees: int) -> float:
    """Quantile of Student's t by its expansion in 1 / degrees; within 1% from 4 degrees of freedom on.

    Source: Abramowitz and Stegun 1964, Handbook of mathematical functions, 26.7.5.
    """
    z, v = NormalDist().inv_cdf(probability), degrees
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / v**i for i, term in enumerate(terms))


def _checked(values, confidence: float, resamples: int) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or len(values) < 2:
        raise ValueError(f"an interval needs at least two values, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {values.size} values are not finite")
    if not 0 < confidence < 1 or resamples < 100:
        raise ValueError(f"confidence must be in (0, 1) and resamples at least 100, got {confidence} and {resamples}")
    return values


def _cluster_rows(n: int, clusters) -> list[np.ndarray]:
    """Rows of each cluster."""
    if clusters is None:
        return list(np.arange(n)[:, None])
    labels = np.unique(np.asarray(clusters), return_inverse=True)[1].ravel()
    if len(labels) != n:
        raise ValueError(f"clusters must name one for each of {n} values, got {len(labels)}")
    order = np.argsort(labels, kind="stable")
    rows = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    if len(rows) < 2:
        raise ValueError("all values are of one cluster: an interval needs at least two")
    return rows


def _means(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of `resamples` resamples of all clusters with replacement, float64 (resamples,)."""
    rng, m = np.random.default_rng(seed), len(sums)
    parts = []
    for start in range(0, resamples, step := max(1, BLOCK // m)):
        pick = rng.integers(m, size=(min(step, resamples - start), m))
        parts.append(sums[pick].sum(axis=1) / counts[pick].sum(axis=1))
    return np.concatenate(parts)


def _levels(confidence: float, m: int) -> tuple[float, float]:
    """Fractions of the resamples below the two ends of the expanded percentile interval of m clusters."""
    t = student_t((1 + confidence) / 2, m - 1)
    low = NormalDist().cdf(-sqrt(m / (m - 1)) * t)
    return low, 1 - low


def _verdict(difference: Interval, higher_is_better: bool, names: tuple[str, str], confidence: float) -> str:
    if difference.low <= 0 <= difference.high:
        return "no difference seen"
    better = names[1] if (difference.low > 0) == higher_is_better else names[0]
    return f"{better} better at {100 * confidence:.3g}%"
