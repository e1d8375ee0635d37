"""What the glyph and the digit classifier have in common: a residual block, and how a trained one lies on disk.

Beside the weights lies a card that says which weights they are, how they were trained and how accurate they are.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.utils.errors import UserError

WEIGHTS, CARD = "model.safetensors", "classifier.json"


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

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.shortcut(x) + self.norm2(self.conv2(h)))


def read_classifier(folder: Path, what: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors in float32, and the card. Raises: UserError when files are missing or were not written together."""
    weights, card = folder / WEIGHTS, folder / CARD
    if not weights.is_file() or not card.is_file():
        raise UserError(f"no {what} in {folder} (needs {WEIGHTS} and {CARD}): train one as its module says")
    content = json.loads(card.read_text(encoding="utf-8"))
    if hashlib.sha256(weights.read_bytes()).hexdigest() != content["sha256"]:
        raise UserError(f"{weights} is not the file {card} describes (sha256 differs): copy or train both again")
    return {name: tensor.float() for name, tensor in load_file(weights).items()}, content
