"""Attributes of an image of a coloured digit: digit, foreground colour (ink), background, stroke width and slant.

The digit is classified by a small network that sees where the ink is and never its colour, so it cannot know which
pairs of digit and colour occur. It is trained on the handwriting of the training split; `classifier.json` beside its
weights states its accuracy on handwriting it never saw. All else is measured without learning. To train it again:

    python -m scripts.train_digit_classifier --output ldm/evaluation/assets/digit_classifier
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ldm.data.digits import GROUNDS, INKS, DigitData
from ldm.evaluation.classifiers import Block, read_classifier
from ldm.evaluation.metrics.proportions import proportion

SIZE = 32
SHIPPED = Path(__file__).parents[1] / "assets" / "digit_classifier"
FAINT = 24.0  # an image whose ink differs from its background by less, of 255, counts as empty
THIN_BELOW, THICK_FROM = 2.08, 3.2  # measured pen widths between the three of the data, in 32nds of the image
SLANTED_FROM = 0.17  # half of the slant in the data


@dataclass(frozen=True)
class Ink:
    """Where the ink is in n images, and on which background."""

    cover: np.ndarray  # float32 (n, 32, 32), 0 = background, 1 = ink
    ground: np.ndarray  # float32 (n, 3), 0..255
    offset: np.ndarray  # float32 (n, 32 * 32, 3), each pixel minus the background
    contrast: np.ndarray  # float32 (n,), distance of ink and background, in 0..255 per channel


def find_ink(images: np.ndarray) -> Ink:
    """Separate background and ink of images without knowing the colour of either.

    The background is the median colour of the outermost ring; cover is the distance from it, over the 99th percentile
    of that distance in the image.

    Args:
        images: uint8 (n, h, w, 3), n >= 1; other sizes than 32 are scaled to it.
    Raises: ValueError for another dtype or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"images of digits are uint8 (n, h, w, 3), got {images.dtype} {images.shape}")
    if images.shape[1:3] != (SIZE, SIZE):
        box = Image.Resampling.BOX
        images = np.stack([np.asarray(Image.fromarray(image).resize((SIZE, SIZE), box)) for image in images])
    pixels = images.astype(np.float32)
    ring = [pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1]]
    ground = np.median(np.concatenate(ring, axis=1), axis=1)
    offset = pixels.reshape(len(pixels), -1, 3) - ground[:, None]
    distance = np.sqrt((offset**2).mean(axis=2))
    contrast = np.quantile(distance, 0.99, axis=1)
    cover = np.clip(distance / np.maximum(contrast, FAINT)[:, None], 0, 1).reshape(-1, SIZE, SIZE)
    return Ink(cover.astype(np.float32), ground, offset, contrast)


def name_grounds(ink: Ink) -> list[str]:
    """The named background nearest to each image's."""
    named = np.array(list(GROUNDS.values()), dtype=np.float32)
    nearest = ((ink.ground[:, None] - named) ** 2).sum(axis=2).argmin(axis=1)
    return [list(GROUNDS)[i] for i in nearest]


def name_inks(ink: Ink) -> list[str]:
    """The named ink that fits each image best; "" where there is hardly any.

    With the image's own background g and an ink c, a pixel covered by a fraction a of ink is g + a (c - g): for each
    ink the best fractions in 0..1 are taken and the squared residuals summed. Soft edges and thin strokes, which never
    show the pure colour, fit as well as others.
    """
    errors = []
    for colour in INKS.values():
        direction = np.array(colour, dtype=np.float32) - ink.ground  # (n, 3)
        length = np.maximum((direction**2).sum(axis=1), 1.0)[:, None]
        a = np.clip(np.einsum("npc,nc->np", ink.offset, direction) / length, 0, 1)
        errors.append(((ink.offset - a[..., None] * direction[:, None]) ** 2).sum(axis=(1, 2)))
    best = np.stack(errors).argmin(axis=0)
    return [list(INKS)[i] if enough else "" for i, enough in zip(best, ink.contrast >= FAINT, strict=True)]


def pen_widths(ink: Ink) -> np.ndarray:
    """Mean width of the strokes in 32nds of the image, (n,): twice their area over the length of their edges."""
    padded = np.pad(ink.cover, ((0, 0), (1, 1), (1, 1)))
    down, right = padded[:, 1:, :-1] - padded[:, :-1, :-1], padded[:, :-1, 1:] - padded[:, :-1, :-1]
    edges = np.sqrt(down**2 + right**2).sum(axis=(1, 2))
    return 2 * ink.cover.sum(axis=(1, 2)) / np.maximum(edges, 1e-6)


def name_thickness(ink: Ink) -> list[str]:
    return ["thin" if w < THIN_BELOW else "thick" if w >= THICK_FROM else "plain" for w in pen_widths(ink)]


def slopes(ink: Ink) -> np.ndarray:
    """Slant as dx / dy upwards, (n,): minus the covariance of x and y over the variance of y."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    weight = np.where(ink.cover > 0.4, ink.cover, 0)
    weight = weight / np.maximum(weight.sum(axis=(1, 2), keepdims=True), 1e-6)
    x = x - (weight * x).sum(axis=(1, 2), keepdims=True)
    y = y - (weight * y).sum(axis=(1, 2), keepdims=True)
    return -(weight * x * y).sum(axis=(1, 2)) / np.maximum((weight * y * y).sum(axis=(1, 2)), 1e-6)


def name_slants(ink: Ink) -> list[str]:
    return ["left" if s < -SLANTED_FROM else "right" if s >= SLANTED_FROM else "upright" for s in slopes(ink)]


class DigitNet(nn.Module):
    """(B, 1, 32, 32) cover in [0, 1] to logits (B, 10)."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 48, 64)):
        super().__init__()
        w = widths
        self.stem = nn.Sequential(nn.Conv2d(1, w[0], 3, 1, 1, bias=False), nn.BatchNorm2d(w[0]), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(a, b, 2) for a, b in itertools.pairwise(w)))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(w[-1] * (SIZE // 8) ** 2, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x))).float()


@dataclass(frozen=True)
class DigitPrediction:
    """Attributes of n images."""

    digits: np.ndarray  # int64 (n,)
    inks: list[str]  # a key of INKS, "" = none
    grounds: list[str]
    thickness: list[str]
    slants: list[str]


class DigitClassifier:
    """The trained network and the measures.

    Args:
        folder: holds model.safetensors and classifier.json; None = the one that ships with the package.
    Raises: UserError when files are missing or are not the ones that were written together.
    """

    def __init__(self, folder: Path | None = None):
        tensors, self.card = read_classifier(SHIPPED if folder is None else Path(folder), "digit classifier")
        self.net = DigitNet()
        self.net.load_state_dict(tensors)
        self.net.eval().requires_grad_(False)

    def predict(self, images: np.ndarray) -> DigitPrediction:
        """Of images uint8 (n, h, w, 3), n >= 1. Raises: ValueError for another dtype or shape."""
        ink = find_ink(images)
        return DigitPrediction(
            digits=classify(self.net, ink.cover),
            inks=name_inks(ink),
            grounds=name_grounds(ink),
            thickness=name_thickness(ink),
            slants=name_slants(ink),
        )


@torch.no_grad()
def classify(net: DigitNet, cover: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """The most probable digit of each cover, float32 (n, 32, 32) to int64 (n,)."""
    parts = [net(torch.from_numpy(cover[i : i + batch_size])[:, None]) for i in range(0, len(cover), batch_size)]
    return torch.cat(parts).argmax(dim=1).numpy()


def attribute_accuracy(prediction: DigitPrediction, metas: Sequence[dict[str, Any]]) -> dict[str, dict]:
    """Proportions, with intervals, of images whose attributes are predicted as expected; others are left out.

    Args:
        metas: for each image the expected 'digit' and 'ink', and perhaps 'ground', 'thickness' and 'slant'.
    Returns: by attribute, and "both" for digit and ink.
    """
    predicted: dict[str, Any] = {
        "digit": prediction.digits.tolist(),
        "ink": prediction.inks,
        "ground": prediction.grounds,
        "thickness": prediction.thickness,
        "slant": prediction.slants,
    }
    correct = {
        name: [value == meta[name] for value, meta in zip(values, metas, strict=True)]
        for name, values in predicted.items()
        if name in metas[0]
    }
    correct["both"] = [a and b for a, b in zip(correct["digit"], correct["ink"], strict=True)]
    return {name: proportion(values) for name, values in correct.items()}


def digit_images(data: DigitData, chosen: Iterable[int] | None = None) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Images uint8 (n, h, w, 3) of a split, all or some, and their attributes."""
    indices = list(range(len(data)) if chosen is None else chosen)
    return np.stack([data.image(i) for i in indices]), [data.meta(i) for i in indices]
