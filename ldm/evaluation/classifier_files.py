"""A trained classifier on disk: its weights, and the card that says which weights they are and how they came about."""

import hashlib
import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ldm.utils.errors import UserError

WEIGHTS, CARD = "model.safetensors", "classifier.json"


def read_classifier(folder: Path, what: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors in float32, and the card. Raises: UserError when files are missing or were not written together."""
    weights, card = folder / WEIGHTS, folder / CARD
    if not weights.is_file() or not card.is_file():
        raise UserError(f"no {what} in {folder} (needs {WEIGHTS} and {CARD}): train one as its module says")
    content = json.loads(card.read_text(encoding="utf-8"))
    if hashlib.sha256(weights.read_bytes()).hexdigest() != content["sha256"]:
        raise UserError(f"{weights} is not the file {card} describes (sha256 differs): copy or train both again")
    return {name: tensor.float() for name, tensor in load_file(weights).items()}, content
