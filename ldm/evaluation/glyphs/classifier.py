"""A small network that classifies glyphs by their shape: layout, radical, components and number of strokes.

It is trained on rendered characters and knows nothing of captions or of the generator, so its predictions can be
compared with the prompt. `classifier.json` beside the weights states its accuracy on characters it never saw, which
bounds how precisely a generator can be measured.

To score composition it has to know the combinations of radical and layout that are held out from the generator, or it
would predict the radical that usually stands there. It was therefore trained on the training split and on half of the
`heldout` characters; `unseen` tells which characters it never saw. Its accuracy is that on those, and images for
captions of held-out characters should be scored on those alone. To train it again:

    python -m scripts.glyph_classifier.train --output ldm/evaluation/assets/glyph_classifier
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from ldm.data.glyphs.components import components_of
from ldm.data.glyphs.dataset import Glyph, split_of
from ldm.evaluation.classifiers import Block, read_classifier
from ldm.utils.errors import UserError

SIZE = 64
NUM_RADICALS = 214
WHERE, WHAT = 128, 256
FEATURES = WHERE + WHAT  # width of what `GlyphClassifier.embed` returns
STROKE_SCALE = 10.0  # unit of the stroke head, so that its loss has the magnitude of the others
BLANK = 0.01  # an image with less ink has none; real glyphs have 0.02 and more
FORMAT = 2  # of the card and the weights; 1 had no components
SHIPPED = Path(__file__).parents[1] / "assets" / "glyph_classifier"


class Outputs(NamedTuple):
    """The network's outputs for B glyphs, float32."""

    layout: torch.Tensor  # logits (B, layouts)
    radical: torch.Tensor  # logits (B, 214)
    components: torch.Tensor  # logits (B, components), independent
    strokes: torch.Tensor  # (B,), strokes / 10


class GlyphNet(nn.Module):
    """(B, 1, 64, 64) ink in [0, 1] to `Outputs`.

    Every head reads the last 8x8 map in two ways: flattened, since layout depends on positions, and max-pooled per
    channel, since a component is the same at any position.
    """

    def __init__(self, layouts: int, components: int, width: int = 32):
        super().__init__()
        w = width
        self.stem = nn.Sequential(nn.Conv2d(1, w, 5, 2, 2, bias=False), nn.BatchNorm2d(w), nn.ReLU())
        self.blocks = nn.Sequential(
            Block(w, 2 * w, 2), Block(2 * w, 2 * w, 1), Block(2 * w, 4 * w, 2), Block(4 * w, 4 * w, 1)
        )
        self.squeeze = nn.Sequential(nn.Conv2d(4 * w, w, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU(), nn.Flatten())
        self.where = nn.Sequential(nn.Linear(w * (SIZE // 8) ** 2, WHERE), nn.ReLU(), nn.Dropout(0.2))
        self.what = nn.Sequential(nn.Conv2d(4 * w, WHAT, 1, bias=False), nn.BatchNorm2d(WHAT), nn.ReLU())
        self.layout = nn.Linear(FEATURES, layouts)
        self.radical = nn.Linear(FEATURES, NUM_RADICALS)
        self.components = nn.Linear(FEATURES, components)
        self.strokes = nn.Linear(FEATURES, 1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, 64, 64) ink in [0, 1] to the (B, FEATURES) activations, >= 0, that every head reads."""
        h = self.blocks(self.stem(x))
        return torch.cat([self.where(self.squeeze(h)), self.what(h).amax(dim=(2, 3))], dim=1)

    def heads(self, h: torch.Tensor) -> Outputs:
        """The outputs for `features`."""
        return Outputs(
            self.layout(h).float(), self.radical(h).float(), self.components(h).float(), self.strokes(h).float()[:, 0]
        )

    def forward(self, x: torch.Tensor) -> Outputs:
        return self.heads(self.features(x))


@dataclass(frozen=True)
class GlyphPrediction:
    """Predictions for n glyphs. Of a blank image nothing is predicted, so nothing of it agrees with a prompt."""

    layouts: list[str]  # the most probable layout of each, out of `GlyphClassifier.layouts`; "" of a blank image
    layout_probabilities: np.ndarray  # float32 (n, layouts), rows sum to 1
    radicals: np.ndarray  # int64 (n,), 1..214; 0 of a blank image
    radical_probabilities: np.ndarray  # float32 (n, 214), rows sum to 1
    components: np.ndarray  # float32 (n, components), the probability that each component is there
    strokes: np.ndarray  # float32 (n,), estimated number of strokes, >= 0

    @property
    def blank(self) -> np.ndarray:
        """Which images have no ink, bool (n,)."""
        return self.radicals == 0


class GlyphClassifier:
    """The trained network with its names.

    Args:
        folder: holds model.safetensors and classifier.json; None = the one that ships with the package.
    Raises: UserError when files are missing or are not the ones that were written together.
    """

    def __init__(self, folder: Path | None = None):
        tensors, self.card = read_classifier(SHIPPED if folder is None else Path(folder), "glyph classifier")
        if (given := self.card.get("format")) != FORMAT:
            raise UserError(f"the glyph classifier is of format {given}, this version reads {FORMAT}: train it again")
        self.layouts: list[str] = self.card["layouts"]
        self.merged: dict[str, str] = self.card["merged_layouts"]  # rare layouts and the class they count as
        self.components: list[str] = self.card["components"]  # commonest first
        self.component_threshold: float = self.card[
            "component_threshold"
        ]  # probability from which one counts as present
        self.net = GlyphNet(len(self.layouts), len(self.components), self.card["width"])
        self.net.load_state_dict(tensors)
        self.net.eval().requires_grad_(False)

    def layout_class(self, structure: str) -> str | None:
        """The class of a layout name of the glyph data; None for a layout without a class ('other')."""
        name = self.merged.get(structure, structure)
        return name if name in self.layouts else None

    @torch.no_grad()
    def predict(self, images: np.ndarray, batch_size: int = 128) -> GlyphPrediction:
        """Predict layout, radical, components and strokes.

        Args:
            images: uint8 (n, h, w) or (n, h, w, 1), dark ink on white; other sizes than 64 are scaled to it.
            batch_size: images at a time; it does not change the results.
        Raises: UserError for another dtype or shape.
        """
        x = self._ink(images)
        outputs = Outputs(*map(torch.cat, zip(*(self.net(part) for part in x.split(batch_size)), strict=True)))
        inked = x.mean(dim=(1, 2, 3)) >= BLANK
        layouts = zip(outputs.layout.argmax(dim=1).tolist(), inked.tolist(), strict=True)
        return GlyphPrediction(
            layouts=[self.layouts[i] if has_ink else "" for i, has_ink in layouts],
            layout_probabilities=outputs.layout.softmax(dim=1).numpy(),
            radicals=((outputs.radical.argmax(dim=1) + 1) * inked).numpy(),
            radical_probabilities=outputs.radical.softmax(dim=1).numpy(),
            components=(outputs.components.sigmoid() * inked[:, None]).numpy(),
            strokes=((outputs.strokes * STROKE_SCALE).clamp(min=0) * inked).numpy(),
        )

    @torch.no_grad()
    def embed(self, images: np.ndarray, batch_size: int = 128) -> np.ndarray:
        """The features that the heads read, for distances between sets of glyphs.

        Args:
            images, batch_size: as of `predict`.
        Returns: float32 (n, FEATURES), >= 0 (they are rectified).
        Raises: UserError for another dtype or shape, or no images.
        """
        x = self._ink(images)
        return torch.cat([self.net.features(part) for part in x.split(batch_size)]).numpy()

    def present(self, prediction: GlyphPrediction) -> np.ndarray:
        """bool (n, components): which components count as present."""
        return prediction.components >= self.component_threshold

    def component_labels(self, codepoints: Sequence[int]) -> np.ndarray:
        """bool (n, components): which characters hold which. Raises: KeyError for one not in the glyph table."""
        return component_labels([components_of(chr(codepoint)) for codepoint in codepoints], self.components)

    @staticmethod
    def _ink(images: np.ndarray) -> torch.Tensor:
        x = to_ink(images)
        if not len(x):
            raise UserError("the glyph classifier got no images: give at least one")
        return x


def unseen(glyph: Glyph) -> bool:
    """Whether the classifier was never trained on a character: all of `validation` and `test`, and half of `heldout`.

    Of `heldout` it is those with u >= 0.5, where u = the first 8 bytes of sha256("ldm judge U+XXXX") / 2^64.
    """
    side = split_of(glyph)
    digest = hashlib.sha256(f"ldm judge U+{glyph.codepoint:04X}".encode()).digest()
    return side != "train" and (side != "heldout" or int.from_bytes(digest[:8], "big") >= 2**63)


def component_labels(held: Sequence[Iterable[str]], names: list[str]) -> np.ndarray:
    """bool (n, len(names)): which of the named components each of n glyphs holds; others are ignored."""
    column = {name: i for i, name in enumerate(names)}
    labels = np.zeros((len(held), len(names)), dtype=bool)
    for row, components in zip(labels, held, strict=True):
        row[[column[c] for c in components if c in column]] = True
    return labels


def to_ink(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w) or (n, h, w, 1), white 255, to float32 (n, 1, 64, 64), ink 1. Raises: UserError."""
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or images.ndim != 3:
        raise UserError(f"glyphs are uint8 (n, h, w), got {images.dtype} {images.shape}: make them grey 0..255")
    if images.shape[1:] != (SIZE, SIZE):
        images = np.array([_resize(image) for image in images], dtype=np.uint8).reshape(-1, SIZE, SIZE)
    return 1 - torch.from_numpy(np.ascontiguousarray(images))[:, None].float() / 255


def _resize(image: np.ndarray) -> np.ndarray:
    kind = Image.Resampling.BOX if min(image.shape) >= SIZE else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((SIZE, SIZE), kind))
