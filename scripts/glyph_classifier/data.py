"""Training data of the glyph classifier: labelled images, and random batches of them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from ldm.data.glyphs.components import load_components
from ldm.data.glyphs.dataset import GlyphData
from ldm.evaluation.glyphs.classifier import STROKE_SCALE, component_labels, to_ink, unseen
from scripts.glyph_classifier.recombination import cut, recombine

MERGED = {"two by two": "triangle", "below": "enclosed"}  # 8 and 7 characters: too few to learn or to measure
UNLABELLED = "other"
TRANSPOSED = {  # what a layout becomes when rows and columns change places
    "horizontal": "vertical",
    "vertical": "horizontal",
    "three across": "three stacked",
    "three stacked": "three across",
    "above": "left",
    "left": "above",
    "upper right": "lower left",
    "lower left": "upper right",
    "upper left": "upper left",
    "enclosed": "enclosed",
    "overlaid": "overlaid",
    "single": "single",
}
IGNORE = -100
RARE = 40  # characters of the training split that a component needs to get a class


@dataclass(frozen=True)
class Glyphs:
    """Labelled images; n of each."""

    images: np.ndarray  # uint8 (n, 64, 64), dark on white
    layouts: list[str]  # after merging; UNLABELLED where there is no label
    radicals: np.ndarray  # int64 (n,), 1..214
    strokes: np.ndarray  # float32 (n,)
    parts: list[tuple[str, ...]]  # the components of each, by part

    @property
    def components(self) -> list[str]:
        """The components of each, as one string."""
        return ["".join(parts) for parts in self.parts]

    def pick(self, chosen: np.ndarray) -> "Glyphs":
        """Those of the given indices."""
        return Glyphs(
            self.images[chosen],
            [self.layouts[i] for i in chosen],
            self.radicals[chosen],
            self.strokes[chosen],
            [self.parts[i] for i in chosen],
        )

    def __add__(self, other: "Glyphs") -> "Glyphs":
        return Glyphs(
            np.concatenate([self.images, other.images]),
            self.layouts + other.layouts,
            np.concatenate([self.radicals, other.radicals]),
            np.concatenate([self.strokes, other.strokes]),
            self.parts + other.parts,
        )


@dataclass(frozen=True)
class Mixture:
    """What the batches are made of."""

    batch_size: int = 128
    balance: float = 0.5  # a layout is drawn in proportion to (its number) ** (1 - balance)
    transposed: float = 0.12  # fraction of the training images that are transposed
    recombined: float = 0.25  # fraction that is recombined, see scripts.glyph_classifier.recombination
    seed: int = 0


def load_glyphs(data: GlyphData) -> Glyphs:
    """A split of the glyph data as arrays, layouts merged."""
    metas, known = [data.meta(i) for i in range(len(data))], load_components()
    return Glyphs(
        images=np.stack([data.image(i)[..., 0] for i in range(len(data))]),
        layouts=[MERGED.get(meta["structure"], meta["structure"]) for meta in metas],
        radicals=np.array([meta["radical"] for meta in metas]),
        strokes=np.array([meta["strokes"] for meta in metas], dtype=np.float32),
        parts=[known[meta["char"]] for meta in metas],
    )


def load_halves(data: GlyphData) -> tuple[Glyphs, Glyphs]:
    """A split, divided into what the classifier may be trained on and what it never sees (`classifier.unseen`)."""
    hidden, glyphs = np.array([unseen(row) for row, _, _ in data.items]), load_glyphs(data)
    return glyphs.pick(np.flatnonzero(~hidden)), glyphs.pick(np.flatnonzero(hidden))


def component_names(glyphs: Glyphs, styles: int) -> list[str]:
    """The components that at least RARE characters have, commonest first; every character is there in each style."""
    names, counts = np.unique([c for held in glyphs.components for c in held], return_counts=True)
    return [str(names[i]) for i in np.argsort(-counts, kind="stable") if counts[i] >= RARE * styles]


def class_names(layouts: list[str]) -> list[str]:
    """The layouts that occur, commonest first, without the unlabelled."""
    names, counts = np.unique([name for name in layouts if name != UNLABELLED], return_counts=True)
    return names[np.argsort(-counts, kind="stable")].tolist()


def draw_weights(layouts: list[str], balance: float) -> torch.Tensor:
    """Sampling weights float64 (n,), sum 1: a class of m members weighs m ** (1 - balance) in all."""
    _names, index, counts = np.unique(layouts, return_inverse=True, return_counts=True)
    weights = counts[index].astype(np.float64) ** -balance
    return torch.from_numpy(weights / weights.sum())


def augment(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vary each glyph a little; (n, 1, h, w) ink in [0, 1] to the same."""
    n = len(ink)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = 1 / uniform(0.85, 1.08), 1 / uniform(0.85, 1.08)
    theta[:, 0, 1], theta[:, 1, 0] = uniform(-0.08, 0.08), uniform(-0.05, 0.05)
    theta[:, :, 2] = uniform(-0.12, 0.12, 2)
    x = F.grid_sample(ink, F.affine_grid(theta, list(ink.shape), align_corners=False), align_corners=False)
    weight = uniform(-0.5, 0.6, 1, 1, 1)  # below 0: thinner strokes; above: thicker
    thick, thin = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    x = x + weight.clamp(min=0) * (thick - x) + (-weight).clamp(min=0) * (thin - x)
    x = torch.lerp(x, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), uniform(-0.5, 1, 1, 1, 1).clamp(min=0))
    x = x * uniform(0.75, 1, 1, 1, 1) + uniform(0, 0.05, 1, 1, 1)
    return (x + uniform(0, 0.06, 1, 1, 1) * torch.randn(x.shape, generator=generator)).clamp(0, 1)


class Batch(NamedTuple):
    """B glyphs; IGNORE, or NaN, where a label is not known."""

    ink: torch.Tensor  # float32 (B, 1, 64, 64) in [0, 1]
    layout: torch.Tensor  # int64 (B,)
    radical: torch.Tensor  # int64 (B,), 0..213
    components: torch.Tensor  # float32 (B, components), 0, 1 or NaN
    strokes: torch.Tensor  # float32 (B,), strokes / 10 or NaN


class Batches:
    """Endless training batches with labels, all chance from one generator."""

    def __init__(self, glyphs: Glyphs, names: list[str], components: list[str], mixture: Mixture):
        self.mixture, self.images = mixture, glyphs.images
        index: dict[str | None, int] = {name: i for i, name in enumerate(names)}
        self.layout = torch.tensor([index.get(name, IGNORE) for name in glyphs.layouts])
        self.layout_transposed = torch.tensor([index.get(TRANSPOSED.get(name), IGNORE) for name in glyphs.layouts])
        self.radical = torch.from_numpy(glyphs.radicals).long() - 1
        self.components = torch.from_numpy(component_labels(glyphs.components, components)).float()
        self.strokes = torch.from_numpy(glyphs.strokes).float() / STROKE_SCALE
        self.weights = draw_weights(glyphs.layouts, mixture.balance)
        self.generator = torch.Generator().manual_seed(mixture.seed)
        self.across = torch.tensor([index.get("vertical", IGNORE), index.get("horizontal", IGNORE)])
        self.new = round(mixture.recombined * mixture.batch_size)
        if self.new:
            both = component_labels([p[min(k, len(p) - 1)] for p in glyphs.parts for k in (0, 1)], components)
            self.parts = cut(glyphs.images, glyphs.layouts, glyphs.radicals, glyphs.parts, both)

    def draw(self) -> Batch:
        """The next batch."""
        real = self._real(self.mixture.batch_size - self.new)
        batch = Batch(*map(torch.cat, zip(real, self._recombined(), strict=True))) if self.new else real
        return batch._replace(ink=augment(batch.ink, self.generator))

    def _real(self, size: int) -> Batch:
        """Characters, some transposed: of these only layout and strokes are known."""
        generator = self.generator
        chosen = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        ink = to_ink(self.images[chosen.numpy()])
        turned = torch.rand(size, generator=generator) < self.mixture.transposed
        turned &= self.layout_transposed[chosen] != IGNORE
        return Batch(
            torch.where(turned[:, None, None, None], ink.transpose(2, 3), ink),
            torch.where(turned, self.layout_transposed[chosen], self.layout[chosen]),
            torch.where(turned, torch.tensor(IGNORE), self.radical[chosen]),
            torch.where(turned[:, None], torch.tensor(torch.nan), self.components[chosen]),
            self.strokes[chosen],
        )

    def _recombined(self) -> Batch:
        ink, across, radical, components = recombine(self.images, self.parts, self.new, self.generator)
        unknown = torch.full((self.new,), torch.nan)
        return Batch(ink, self.across[across.long()], radical - 1, components, unknown)
