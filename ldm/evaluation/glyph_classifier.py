"""A small network that judges glyphs by their shape: layout, radical and number of strokes.

It is trained on rendered characters of the training split and knows nothing of captions or of the generator, so its
answers can be compared with what a prompt asked for. `classifier.json` beside the weights states how right it is on
characters it never saw; a generator cannot be measured more exactly than that. To train it again:

    python -m ldm.evaluation.glyph_classifier --output ldm/evaluation/assets/glyph_classifier
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ldm.errors import UserError
from ldm.evaluation.classifier_files import read_classifier

SIZE = 64
NUM_RADICALS = 214
FEATURES = 256  # width of what `GlyphClassifier.embed` returns
STROKE_SCALE = 10.0  # the stroke head speaks in tens, so that its loss is of the size of the others
SHIPPED = Path(__file__).parent / "assets" / "glyph_classifier"


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut. Source: He et al. 2016, Deep residual learning, CVPR."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        same = channels_in == channels and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.shortcut(x) + self.norm2(self.conv2(h)))


class GlyphNet(nn.Module):
    """(B, 1, 64, 64) ink in [0, 1] to layout logits (B, layouts), radical logits (B, 214) and strokes / 10 (B,).

    The last 8x8 map is flattened, not averaged: layout is a matter of where things are.
    """

    def __init__(self, layouts: int, width: int = 32):
        super().__init__()
        w = width
        self.stem = nn.Sequential(nn.Conv2d(1, w, 5, 2, 2, bias=False), nn.BatchNorm2d(w), nn.ReLU())
        self.blocks = nn.Sequential(
            Block(w, 2 * w, 2), Block(2 * w, 2 * w, 1), Block(2 * w, 4 * w, 2), Block(4 * w, 4 * w, 1)
        )
        self.squeeze = nn.Sequential(nn.Conv2d(4 * w, w, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU(), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(w * (SIZE // 8) ** 2, FEATURES), nn.ReLU(), nn.Dropout(0.2))
        self.layout = nn.Linear(FEATURES, layouts)
        self.radical = nn.Linear(FEATURES, NUM_RADICALS)
        self.strokes = nn.Linear(FEATURES, 1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, 64, 64) ink in [0, 1] to the (B, FEATURES) activations, >= 0, that every head reads."""
        return self.hidden(self.squeeze(self.blocks(self.stem(x))))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h = self.features(x)
        return self.layout(h).float(), self.radical(h).float(), self.strokes(h).float()[:, 0]


@dataclass(frozen=True)
class Judgement:
    """What the classifier says of n glyphs."""

    layouts: list[str]  # the likeliest layout of each, out of `GlyphClassifier.layouts`
    layout_probabilities: np.ndarray  # float32 (n, layouts), rows sum to 1
    radicals: np.ndarray  # int64 (n,), 1..214
    radical_probabilities: np.ndarray  # float32 (n, 214), rows sum to 1
    strokes: np.ndarray  # float32 (n,), estimated number of strokes, >= 0


class GlyphClassifier:
    """The trained network with its names.

    Args:
        folder: holds model.safetensors and classifier.json; None = the one that ships with the package.
    Raises: UserError when files are missing or are not the ones that were written together.
    """

    def __init__(self, folder: Path | None = None):
        tensors, self.card = read_classifier(SHIPPED if folder is None else Path(folder), "glyph classifier")
        self.layouts: list[str] = self.card["layouts"]
        self.merged: dict[str, str] = self.card["merged_layouts"]  # rare layouts and the class they count as
        self.net = GlyphNet(len(self.layouts), self.card["width"])
        self.net.load_state_dict(tensors)
        self.net.eval().requires_grad_(False)

    def layout_class(self, structure: str) -> str | None:
        """The class a layout name of the glyph data is judged as; None where it is not judged ('other')."""
        name = self.merged.get(structure, structure)
        return name if name in self.layouts else None

    @torch.no_grad()
    def judge(self, images: np.ndarray, batch_size: int = 128) -> Judgement:
        """Judge glyphs.

        Args:
            images: uint8 (n, h, w) or (n, h, w, 1), dark ink on white; other sizes than 64 are scaled to it.
            batch_size: pictures at a time; it does not change the answers.
        Raises: UserError for another dtype or shape.
        """
        x = self._ink(images)
        outputs = [self.net(x[i : i + batch_size]) for i in range(0, len(x), batch_size)]
        layout, radical, strokes = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return Judgement(
            layouts=[self.layouts[i] for i in layout.argmax(dim=1).tolist()],
            layout_probabilities=layout.softmax(dim=1).numpy(),
            radicals=radical.argmax(dim=1).numpy() + 1,
            radical_probabilities=radical.softmax(dim=1).numpy(),
            strokes=(strokes * STROKE_SCALE).clamp(min=0).numpy(),
        )

    @torch.no_grad()
    def embed(self, images: np.ndarray, batch_size: int = 128) -> np.ndarray:
        """The features behind the answers, for distances between sets of glyphs.

        Args:
            images, batch_size: as of `judge`.
        Returns: float32 (n, FEATURES), >= 0 (they are rectified).
        Raises: UserError for another dtype or shape, or no images.
        """
        x = self._ink(images)
        return torch.cat([self.net.features(x[i : i + batch_size]) for i in range(0, len(x), batch_size)]).numpy()

    @staticmethod
    def _ink(images: np.ndarray) -> torch.Tensor:
        x = to_ink(images)
        if not len(x):
            raise UserError("the glyph classifier got no images: give at least one")
        return x


def to_ink(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w) or (n, h, w, 1), white 255, to float32 (n, 1, 64, 64), ink 1. Raises: UserError."""
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or images.ndim != 3:
        raise UserError(
            f"glyphs to judge are uint8 (n, h, w), got {images.dtype} {images.shape}: make them grey 0..255"
        )
    if images.shape[1:] != (SIZE, SIZE):
        images = np.array([_resize(image) for image in images], dtype=np.uint8).reshape(-1, SIZE, SIZE)
    return 1 - torch.from_numpy(np.ascontiguousarray(images))[:, None].float() / 255


def _resize(image: np.ndarray) -> np.ndarray:
    kind = Image.Resampling.BOX if min(image.shape) >= SIZE else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((SIZE, SIZE), kind))


if __name__ == "__main__":
    from ldm.errors import run_main
    from ldm.evaluation.classifier_training import main

    run_main(main)
