"""A classifier of emoji: style and group of an image. Train it on real ones, and measure it on names it never saw.

    python -m scripts.emoji.classifier emoji --output emoji-classifier

Training images are moved, scaled, blurred, recoloured a little and made noisy, as generated ones are. The images whose
names are held out say how accurate it is: that is the most that can be expected of generated images of new names.
"""

import argparse
import itertools
import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.evaluation.classifiers import Block, read_classifier
from ldm.evaluation.metrics.proportions import proportion
from ldm.utils.runtime import run_main
from scripts import one_cycle
from scripts.emoji.data import Emoji, EmojiSet, images_of, read_set
from scripts.glyph_classifier.train import half_precision, write_classifier

SIZE = 64
BATCH_SIZE = 64
WIDTHS = (16, 32, 64, 128)


class EmojiNet(nn.Module):
    """RGB (B, 3, 64, 64) in [-1, 1] to logits of styles (B, s) and of groups (B, g)."""

    def __init__(self, styles: int, groups: int, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        w = widths
        self.stem = nn.Sequential(nn.Conv2d(3, w[0], 5, 2, 2, bias=False), nn.BatchNorm2d(w[0]), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(a, b, 2) for a, b in itertools.pairwise(w)))
        self.drop = nn.Dropout(0.3)
        self.styles, self.groups = nn.Linear(w[-1], styles), nn.Linear(w[-1], groups)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.drop(self.blocks(self.stem(x)).mean((2, 3)))
        return self.styles(h), self.groups(h)


class EmojiClassifier:
    """A trained classifier. Raises: UserError: files are missing or not of one training."""

    def __init__(self, folder: Path):
        tensors, self.card = read_classifier(folder, "emoji classifier")
        self.net = EmojiNet(len(self.card["styles"]), len(self.card["groups"]))
        self.net.load_state_dict(tensors)
        self.net.eval().requires_grad_(False)

    @torch.no_grad()
    def predict(self, images: np.ndarray, batch_size: int = 128) -> tuple[list[str], list[str]]:
        """The most probable style and group of each image, uint8 (n, h, w, 3)."""
        styles, groups = [], []
        for start in range(0, len(images), batch_size):
            logits = self.net(as_input(images[start : start + batch_size]))
            styles += [self.card["styles"][i] for i in logits[0].argmax(1).tolist()]
            groups += [self.card["groups"][i] for i in logits[1].argmax(1).tolist()]
        return styles, groups


def as_input(images: np.ndarray) -> Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, 64, 64) in [-1, 1]."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x if x.shape[2:] == (SIZE, SIZE) else F.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Vary each image (n, 3, 64, 64) a little, on white."""
    n = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    scale, zero = uniform(0.85, 1.2), torch.zeros(n)
    rows = [torch.stack([scale, zero, uniform(-0.15, 0.15)], 1), torch.stack([zero, scale, uniform(-0.15, 0.15)], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    x = F.grid_sample(x - 1, grid, align_corners=False) + 1
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, uniform(0, 1)[:, None, None, None])
    tint = torch.empty(n, 3, 1, 1).uniform_(0.9, 1.1, generator=generator)
    noise = torch.empty_like(x).normal_(generator=generator) * uniform(0, 0.06)[:, None, None, None]
    return ((x - 1) * tint + 1 + noise).clamp(-1, 1)


def labels_of(emoji: list[Emoji], data: EmojiSet) -> Tensor:
    """int64 (n, 2): number of style and of group."""
    return torch.tensor([(data.styles.index(each.style), data.groups.index(each.group)) for each in emoji])


def fit(data: EmojiSet, epochs: int, seed: int = 0, report: Callable[[str], None] = print) -> EmojiNet:
    """A trained classifier; see `scripts.one_cycle`."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = images_of(data.splits["train"]), labels_of(data.splits["train"], data)
    net = EmojiNet(len(data.styles), len(data.groups)).to(memory_format=torch.channels_last)
    batches = max(1, len(images) // BATCH_SIZE)

    def losses(epoch: int) -> Iterator[Tensor]:
        for chosen in torch.randperm(len(images), generator=generator).tensor_split(batches):
            yield loss_of(net, augment(as_input(images[chosen.numpy()]), generator), labels[chosen])

    return one_cycle.fit(net, epochs, batches, losses, report)


def loss_of(net: EmojiNet, x: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropies of style and group."""
    styles, groups = net(x.contiguous(memory_format=torch.channels_last))
    style = F.cross_entropy(styles, labels[:, 0], label_smoothing=0.05)
    return style + F.cross_entropy(groups, labels[:, 1], label_smoothing=0.1)


def accuracy(classifier: EmojiClassifier, emoji: list[Emoji]) -> dict:
    """Proportions, with intervals, of images whose style and group are predicted right, and those of each group."""
    styles, groups = classifier.predict(images_of(emoji))
    right = np.array([one == each.group for one, each in zip(groups, emoji, strict=True)], bool)
    own = np.array([each.group for each in emoji])
    return {
        "style": proportion([one == each.style for one, each in zip(styles, emoji, strict=True)]),
        "group": proportion(right),
        "each_group": {name: proportion(right[own == name]) for name in sorted(set(own))},
    }


def main(argv: list[str] | None = None) -> int:
    """Train, measure on held-out names, write model.safetensors and classifier.json."""
    parser = argparse.ArgumentParser(prog="python -m scripts.emoji.classifier", description=main.__doc__)
    parser.add_argument("data", type=Path, help="folder made by scripts/build_emoji.py")
    parser.add_argument("--output", type=Path, required=True, help="folder for the weights and their card")
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    data, started = read_set(args.data), time.monotonic()
    net, weights = half_precision(fit(data, args.epochs, args.seed, report=lambda line: print(line, flush=True)))
    flags = ["DATA", "--output", "OUTPUT", "--epochs", str(args.epochs), "--seed", str(args.seed)]
    card = {
        "format": 1,
        "styles": data.styles,
        "groups": data.groups,
        "parameters": sum(p.numel() for p in net.parameters()),
        "trained_on": {"split": "train", "images": len(data.splits["train"])},
        "command": shlex.join(["python", "-m", "scripts.emoji.classifier", *flags]),
        "seconds": round(time.monotonic() - started),
    }
    write_classifier(args.output, weights, card)
    card["held_out_names"] = accuracy(EmojiClassifier(args.output), data.splits["validation"])
    write_classifier(args.output, weights, card)
    print(json.dumps({name: card["held_out_names"][name] for name in ("style", "group")}))
    return 0


if __name__ == "__main__":
    run_main(main)
