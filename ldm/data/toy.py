"""Points on a line or in the plane whose density is known, so that nothing about them need be estimated.

Every toy is a mixture of Gaussians with diagonal covariances: `gaussian` is one, `mixture` is three on a line,
`8_gaussians` eight on a circle. `swiss_roll` is a curve blurred by Gaussian noise, an integral over the curve; 512
Gauss-Legendre nodes make it a sum: log-densities of its points are exact to 1e-12.

Density, score and denoiser of noised points are exact: `ldm.diffusion.gaussian_mixture`.

A new toy is one class that gives weights, means and variances to `Toy`, and its line in `TOYS`.
"""

import difflib
import hashlib
import math
from collections.abc import Callable

import numpy as np

from ldm.config.settings import DataOptions
from ldm.diffusion.gaussian_mixture import Toy, exact_denoiser  # noqa: F401
from ldm.utils.errors import UserError


class Gaussian(Toy):
    """One Gaussian on a line."""

    def __init__(self, mean: float = 1.0, std: float = 0.5):
        super().__init__([1.0], [[mean]], [[std**2]])

    @classmethod
    def fit(cls, points: np.ndarray) -> "Gaussian":
        """The Gaussian of greatest likelihood for points (n, 1) or (n,): their mean, and their std with 1 / n."""
        return cls(float(np.mean(points)), float(np.std(points)))


class LineMixture(Toy):
    """Gaussians of unequal weight and width on a line, as a whole of mean 0 and variance 1."""

    def __init__(
        self,
        weights: tuple[float, ...] = (0.5, 0.3, 0.2),
        means: tuple[float, ...] = (-2.0, 1.0, 3.0),
        stds: tuple[float, ...] = (0.6, 0.3, 0.5),
        parts: tuple[str, ...] = ("left", "middle", "right"),
    ):
        raw = Toy(weights, np.array(means)[:, None], np.array(stds)[:, None] ** 2)
        variance = raw.covariance[0, 0]
        super().__init__(weights, (raw.means - raw.mean) / math.sqrt(variance), raw.variances / variance, parts)


class EightGaussians(Toy):
    """Eight equal Gaussians on a circle, `ratio` times its radius wide; each axis of variance 1.

    Neighbours are 7.7 standard deviations apart: one point in 8,000 lies nearer to another mode than to its own.
    """

    def __init__(self, ratio: float = 0.1):
        parts = ("east", "north east", "north", "north west", "west", "south west", "south", "south east")
        radius = 1 / math.sqrt(0.5 + ratio**2)
        angles = np.arange(8) * math.pi / 4
        means = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        super().__init__(np.full(8, 1 / 8), means, np.full((1, 2), (ratio * radius) ** 2), parts)


class SwissRoll(Toy):
    """(t cos t, t sin t) plus Gaussian noise of std 0.5, t = 1.5 pi (1 + 2u), u uniform; each axis standardised.

    By the exact mean and standard deviation, not those of a sample, so that draws can be compared: integrating
    t cos t, t sin t and their squares over t gives the means 2 and 2 / (3 pi), and, with the noise, the mean squares
    4.875 pi^2 and 4.875 pi^2 + 0.5.
    """

    noise = 0.5
    centre = np.array([2.0, 2 / (3 * math.pi)])
    spread = np.sqrt(np.array([4.875 * math.pi**2, 4.875 * math.pi**2 + 0.5]) - centre**2)

    def __init__(self, nodes: int = 512):
        places, weights = np.polynomial.legendre.leggauss(nodes)
        super().__init__(weights / 2, self.curve((places + 1) / 2), (self.noise / self.spread)[None] ** 2)

    def curve(self, u: np.ndarray) -> np.ndarray:
        """The roll without noise, (n, 2), for u (n,) in [0, 1]."""
        t = 1.5 * math.pi * (1 + 2 * u)
        return (np.stack([t * np.cos(t), t * np.sin(t)], axis=1) - self.centre) / self.spread

    def sample_labelled(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """n points, float64 (n, 2), and label 0 for each: the roll has no parts."""
        noise = self.noise / self.spread * rng.standard_normal((n, 2))
        return self.curve(rng.random(n)) + noise, np.zeros(n, np.int64)


TOYS: dict[str, Callable[[], Toy]] = {
    "gaussian": Gaussian,
    "mixture": LineMixture,
    "8_gaussians": EightGaussians,
    "swiss_roll": SwissRoll,
}


def toy_named(name: str) -> Toy:
    """The toy of that name. Raises: UserError for a name that is not in `TOYS`."""
    if name not in TOYS:
        near = difflib.get_close_matches(name, TOYS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"data.toy.name must be one of {', '.join(TOYS)}, got {name!r}{hint}")
    return TOYS[name]()


# ---- as training data -----------------------------------------------------------------------------------------------


def caption_for(part: str) -> str:
    """What a point of this part is called: 'the north east mode'."""
    return f"the {part} mode"


class ToyData:
    """One split, sampled once from a fixed seed. See `ldm.data.ImageTextData`."""

    resolution = 1

    def __init__(self, options: DataOptions, split: str, size: int):
        name = options.toy.name
        self.toy = toy_named(name)
        self.channels = self.toy.dims
        self.has_captions = options.toy.captions
        if self.has_captions and not self.toy.parts:
            raise UserError(f"{name} has no parts to name: set data.toy.captions to false")
        digest = hashlib.sha256(f"ldm toy {name} {split}".encode()).digest()
        points, self.labels = self.toy.sample_labelled(size, np.random.default_rng(list(digest)))
        self.points = points.astype(np.float32)
        self.ids = [f"{name}/{split}/{i}" for i in range(size)]

    def __len__(self) -> int:
        return len(self.points)

    @property
    def fingerprint(self) -> str:
        """Digest of the points."""
        return hashlib.sha256(self.points.tobytes()).hexdigest()

    def image(self, i: int) -> np.ndarray:
        """The point as an image of one pixel, (1, 1, d): float32, the only data that is not uint8."""
        return self.points[i].reshape(1, 1, -1)

    def caption(self, i: int, rng: np.random.Generator) -> str:
        """'the north east mode', or '' without captions."""
        return caption_for(self.toy.parts[self.labels[i]]) if self.has_captions else ""


def splits(options: DataOptions) -> dict[str, ToyData]:
    """Train with `toy.size` points, validation and test with a tenth of that, at least one.

    Raises: UserError for a toy that does not exist, or captions of one that has no parts.
    """
    size = options.toy.size
    sizes = {"train": size, "validation": max(1, size // 10), "test": max(1, size // 10)}
    return {name: ToyData(options, name, count) for name, count in sizes.items()}
