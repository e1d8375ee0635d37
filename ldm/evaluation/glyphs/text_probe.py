"""Can a text encoder be asked for what it never saw together? Readings of its states, without drawing anything.

Every trained (radical, layout) gives a prompt, 'vertical stacked glyph with the water radical', and so does every pair
held out. A denoiser receives nothing of a prompt but these states. If the nearest trained prompt of a held-out one has
its layout and another radical, that is what will be drawn; and what a linear map cannot read from the states is hard to
read for cross-attention too. A second of CPU tells it before a denoiser is trained.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ldm.data.glyphs.captions import layout_phrase, radical_phrase
from ldm.data.glyphs.dataset import load_table, split_of
from ldm.data.glyphs.heldout import HELD_OUT, LATER

RIDGE = 1e-2  # of the mean square of the states
Pair = tuple[int, str]  # radical, layout


@dataclass(frozen=True)
class Readings:
    """Shares of the held-out prompts."""

    nearest_radical: float  # whose nearest trained prompt has their radical
    nearest_layout: float
    radical: float  # whose radical a linear map fitted on the trained prompts reads
    layout: float


@torch.no_grad()
def states_of(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, pairs: list[Pair]) -> Tensor:
    """All states of the prompts, flattened: float64 (n, L * D)."""
    prompts = [f"{layout_phrase(layout)} {radical_phrase(radical)}" for radical, layout in pairs]
    ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    device = getattr(encoder, "device", "cpu")
    states = [encoder(input_ids=part.to(device)).last_hidden_state.flatten(1) for part in ids.split(64)]
    return torch.cat(states).double().cpu()


def read(known: Tensor, labels: np.ndarray, asked: Tensor) -> np.ndarray:
    """What a ridge regression on one-hot labels (n,), fitted on states (n, d), says of other states (m, d)."""
    names, index = np.unique(labels, return_inverse=True)
    centre = known.mean(0)
    x, targets = known - centre, torch.eye(len(names), dtype=torch.float64)[torch.from_numpy(index)]
    gram = x @ x.T
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(x), dtype=torch.float64)
    weights = torch.linalg.solve(gram + ridge, targets - targets.mean(0))
    return names[((asked - centre) @ x.T @ weights + targets.mean(0)).argmax(1).numpy()]


def trained_pairs() -> list[Pair]:
    """All pairs of training characters, with both lists held out."""
    rows = (row for row in load_table() if split_of(row, later=True) == "train")
    return sorted({(row.radical, row.structure) for row in rows} - set(HELD_OUT + LATER))


def probe(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, pairs: tuple[Pair, ...] = HELD_OUT + LATER) -> Readings:
    """Readings of the prompts of `pairs`, against those of all trained pairs."""
    trained = trained_pairs()
    return _readings(states_of(encoder, tokenizer, trained), trained, states_of(encoder, tokenizer, list(pairs)), pairs)


def _readings(known: Tensor, trained: list[Pair], asked: Tensor, pairs: tuple[Pair, ...]) -> Readings:
    nearest = [trained[i] for i in torch.cdist(asked, known).argmin(1).tolist()]
    shares = []
    for k in (0, 1):
        wanted = np.array([pair[k] for pair in pairs])
        shares.append(float(np.mean([pair[k] for pair in nearest] == wanted)))
        shares.append(float(np.mean(read(known, np.array([pair[k] for pair in trained]), asked) == wanted)))
    return Readings(nearest_radical=shares[0], radical=shares[1], nearest_layout=shares[2], layout=shares[3])


def text_section(encoder: Any, tokenizer: Any) -> dict[str, dict]:
    """The readings of both lists of held-out pairs, ready for JSON; {} for an encoder that is no CLIP text model."""
    if not isinstance(encoder, CLIPTextModel):
        return {}
    trained = trained_pairs()
    known = states_of(encoder, tokenizer, trained)
    found = {}
    for name, pairs in (("pair", HELD_OUT), ("later", LATER)):
        readings = _readings(known, trained, states_of(encoder, tokenizer, list(pairs)), pairs)
        found[name] = {key: round(value, 4) for key, value in asdict(readings).items()} | {"prompts": len(pairs)}
    return found
