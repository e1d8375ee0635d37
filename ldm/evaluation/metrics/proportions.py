"""Proportions with their intervals."""

from math import sqrt
from statistics import NormalDist

import numpy as np


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion p = successes / n: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

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


def proportion(right) -> dict:
    """A boolean array as numbers for a report: count, proportion ("share") and its 95% Wilson interval."""
    right = np.asarray(right, dtype=bool)
    low, high = wilson_interval(int(right.sum()), right.size)
    mean = round(float(right.mean()), 4) if right.size else None
    return {"n": int(right.size), "share": mean, "interval": [round(low, 4), round(high, 4)]}
