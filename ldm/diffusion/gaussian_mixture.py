"""A mixture of Gaussians with diagonal covariances, whose exact denoiser and score are known at every noise level.

A mixture stays one under x_t = alpha x0 + sigma eps: means alpha m, variances alpha^2 v + sigma^2. Hence the exact
log-density and score of noised points, and the exact denoiser E[x0 | x_t], for every alpha and sigma. `toy.part(label)`
is the toy given the label. All of it takes torch tensors, computes in float64 and returns the dtype it was given.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from ldm.diffusion.schedules import Schedule

Scale: TypeAlias = float | Tensor  # one for all, or a tensor of shape () or (n,)

ROWS_TIMES_PARTS = 2**20  # how many numbers one block of the (points, Gaussians) table has: 8 MiB


class Toy:
    """A mixture of Gaussians with diagonal covariances in d dimensions.

    Args:
        weights: (K,), of sum 1.
        means: (K, d).
        variances: (K, d), or (1, d) when all Gaussians have the same.
        parts: a name for each Gaussian where captions tell them apart; empty = they do not.
    """

    def __init__(self, weights: Any, means: Any, variances: Any, parts: tuple[str, ...] = ()):
        self.weights, self.means, self.variances = (np.asarray(a, np.float64) for a in (weights, means, variances))
        self.parts = parts
        self.dims: int = self.means.shape[1]

    # ---- samples ----

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n independent points, float64 (n, d)."""
        return self.sample_labelled(n, rng)[0]

    def sample_labelled(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """n points, float64 (n, d), and the index of the Gaussian that each came from, int64 (n,)."""
        labels = rng.choice(len(self.weights), size=n, p=self.weights)
        deviations = np.broadcast_to(np.sqrt(self.variances), self.means.shape)
        return self.means[labels] + deviations[labels] * rng.standard_normal((n, self.dims)), labels

    def part(self, label: int | str) -> "Toy":
        """The toy given the label, an index or a name among `parts`. Raises: ValueError where there is no such part."""
        index = self.parts.index(label) if label in self.parts else label
        if not isinstance(index, int) or not 0 <= index < len(self.parts):
            raise ValueError(f"label must be one of {self.parts} or an index among them, got {label!r}")
        variances = np.broadcast_to(self.variances, self.means.shape)
        return Toy([1.0], self.means[[index]], variances[[index]])

    # ---- moments ----

    @property
    def mean(self) -> np.ndarray:
        """E[x0], (d,)."""
        return self.weights @ self.means

    @property
    def covariance(self) -> np.ndarray:
        """Cov[x0], (d, d)."""
        centred = self.means - self.mean
        within = self.weights @ np.broadcast_to(self.variances, self.means.shape)
        return (self.weights[:, None] * centred).T @ centred + np.diag(within)

    # ---- exact quantities of x_t = alpha x0 + sigma eps; alpha = 1 and sigma = 0 are the clean points ----

    def log_density(self, x: Tensor, alpha: Scale = 1.0, sigma: Scale = 0.0) -> Tensor:
        """ln p(x_t) in nats at x (n, d), shape (n,)."""
        return self._blocks(lambda x, a, s: self._joint(x, a, s).logsumexp(1), x, alpha, sigma)

    def responsibilities(self, x: Tensor, alpha: Scale = 1.0, sigma: Scale = 0.0) -> Tensor:
        """P(Gaussian k | x_t), (n, K), for x (n, d)."""
        return self._blocks(lambda x, a, s: self._joint(x, a, s).softmax(1), x, alpha, sigma)

    def score(self, x: Tensor, alpha: Scale = 1.0, sigma: Scale = 0.0) -> Tensor:
        """grad ln p(x_t), (n, d), for x (n, d)."""

        def block(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            means, variances = self._noised(x, alpha, sigma)
            return self._expected(x, alpha, sigma, lambda d: (alpha * means[:, d] - x[:, d, None]) / variances[d])

        return self._blocks(block, x, alpha, sigma)

    def denoise(self, x_t: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """The exact denoiser E[x0 | x_t], (n, d), for x_t (n, d)."""

        def block(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            means, variances = self._noised(x, alpha, sigma)
            clean = x.new_tensor(self.variances)

            def given(d: int) -> Tensor:  # E[x0 | x_t, k] = m + alpha v / (alpha^2 v + sigma^2) (x_t - alpha m)
                gain = alpha * clean[:, d] / variances[d]
                return means[:, d] + gain * (x[:, d, None] - alpha * means[:, d])

            return self._expected(x, alpha, sigma, given)

        return self._blocks(block, x_t, alpha, sigma)

    def _noised(self, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, list[Tensor]]:
        """The clean means (K, d), and along each axis the variances of x_t, each broadcasting against (n, K)."""
        clean = x.new_tensor(self.variances)
        return x.new_tensor(self.means), [alpha**2 * clean[:, d] + sigma**2 for d in range(self.dims)]

    def _joint(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """ln P(k) p(x_t | k), (n, K)."""
        means, variances = self._noised(x, alpha, sigma)
        total = x.new_tensor(np.log(self.weights))
        for d, variance in enumerate(variances):  # axis by axis: a table (n, K, d) would be larger
            square = (x[:, d, None] - alpha * means[:, d]).square()
            total = total - 0.5 * (square / variance + (2 * math.pi * variance).log())
        return total

    def _expected(self, x: Tensor, alpha: Scale, sigma: Scale, given: Callable[[int], Tensor]) -> Tensor:
        """The mean over k given x_t of what `given(d)` says of each k along axis d: (n, d)."""
        shares = self._joint(x, alpha, sigma).softmax(1)
        result = x.new_zeros(x.shape)
        for d in range(self.dims):
            unit = x.new_tensor(np.eye(self.dims)[d])
            result = result + (shares * given(d)).sum(1, keepdim=True) * unit
        return result

    def _blocks(self, function: Callable[..., Tensor], x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """`function` on float64 rows of x, some at a time for memory's sake; alpha and sigma as floats or columns."""
        if x.ndim != 2 or x.shape[1] != self.dims:
            raise ValueError(f"points must have shape (n, {self.dims}), got {tuple(x.shape)}")
        scales = [_column(scale, x) for scale in (alpha, sigma)]
        step = max(1, ROWS_TIMES_PARTS // len(self.means))
        parts = [
            function(x[i : i + step].double(), *(s[i : i + step] if len(s) > 1 else s for s in scales))
            for i in range(0, max(len(x), 1), step)
        ]
        whole = parts[0]
        if len(parts) > 1:
            whole = x.new_empty((len(x), *whole.shape[1:]), dtype=whole.dtype)
            for i, part in enumerate(parts):
                whole[i * step : i * step + len(part)] = part
        return whole.to(x.dtype)


def _column(scale: Scale, x: Tensor) -> Tensor:
    """A scale as float64 (1, 1) or (n, 1)."""
    tensor = x[:0].double().new_tensor(scale) if isinstance(scale, float | int) else scale.double()
    return tensor.reshape(-1, 1)


def exact_denoiser(toy: Toy, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
    """denoise(x_t, t) -> E[x0 | x_t] of x_t's shape, for points (n, d) or (n, d, 1, 1) and times () or (n,)."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.scales(t.double())
        return toy.denoise(x_t.reshape(len(x_t), toy.dims), alpha, sigma).reshape(x_t.shape)

    return denoise
