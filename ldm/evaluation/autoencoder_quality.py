"""Is an autoencoder trained at all, and does it keep every colour? Two references that need no opinion.

The linear reference: the best linear map of a patch to as many numbers as the latents have, from the training images in
closed form, costs a second; an autoencoder that is not better has learned nothing. And the gain of each direction of
colour, original against reconstruction: 1 where it is kept, 0 where it is lost.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from ldm.data import ImageTextData, evenly_spaced_indices
from ldm.models.latents import is_vector_quantized
from ldm.models.linear_autoencoder import FITTED_PIXELS, pca_psnr
from ldm.utils.image_tensors import as_seen, to_images
from ldm.utils.transparency import on_grounds

# dB above the linear reference. Trainings that lost colours lay from -6 to +0.7, those that kept them from +2 to +12;
# the mean over 300 images is uncertain by some 0.4.
MARGIN = 1.0
ENOUGH = 35.0  # dB: errors of 4.5 in 255 are not seen, whatever a linear map of large latents reaches
LOST, WEAK = 0.6, 0.85  # gains
FAINT = 0.02  # standard deviation of a direction of colour, in [-1, 1], below which images do not have it
TRAINING = 2000  # images at most that the linear reference is computed from
CELL = 8  # side in pixels of the squares whose mean colours are compared
DIRECTIONS = {"red-cyan": (2, -1, -1), "green-magenta": (-1, 2, -1), "blue-yellow": (-1, -1, 2)}


class Complaint(NamedTuple):
    """What is wrong with an autoencoder, what to do about it, and whether it is more than a doubt."""

    text: str
    advice: str
    serious: bool


def colour_gains(before: np.ndarray, after: np.ndarray) -> dict[str, Any] | None:
    """How far the mean colours of 8 x 8 pixels survive, of images uint8 (n, h, w, c); None without colours (c < 3).

    Images with alpha are compared on black and on white.

    Returns: "error", root mean square over the channels' differences with their mean, the brightness, taken off, in
        [-1, 1]; "gains", of each of DIRECTIONS, in which greys are 0, the slope of reconstructed against original;
        None where the originals do not vary in it.
    """
    if before.shape[3] < 3:
        return None
    x, y = (_cells(np.concatenate(on_grounds(images))) for images in (before, after))
    apart = y - x
    error = np.sqrt(((apart - apart.mean(1, keepdims=True)) ** 2).mean())
    gains: dict[str, float | None] = {}
    for name, direction in DIRECTIONS.items():
        a, b = (v @ np.array(direction) / np.sqrt(6) for v in (x - x.mean(0), y - y.mean(0)))
        gains[name] = round(float(a @ b / (a @ a)), 3) if a.std() > FAINT else None
    return {"error": round(float(error), 4), "gains": gains}


def _cells(images: np.ndarray) -> np.ndarray:
    """Means over squares of CELL pixels, or over the image if it is smaller: float64 (m, c), in [-1, 1]."""
    n, h, w, c = images.shape
    high, wide = min(CELL, h), min(CELL, w)
    cut = images[:, : h // high * high, : w // wide * wide]
    cells = cut.reshape(n, h // high, high, w // wide, wide, c).mean((2, 4), dtype=np.float64)
    return cells.reshape(-1, c) / 127.5 - 1


def quality(
    vae, train: ImageTextData | None, before: np.ndarray, after: np.ndarray, latents: torch.Tensor
) -> dict[str, Any]:
    """{"floor": {"psnr", "channels", "factor", "margin"} or None, "chroma": see `colour_gains`}.

    Args:
        train: the training split; without it, for pixels, and for a codebook, whose numbers are few, there is no floor.
        before, after: originals and reconstructions, uint8 (n, h, w, c); latents: between them, (n, k, h / f, w / f).
    """
    factor, channels = before.shape[1] // latents.shape[2], latents.shape[1]
    floor = None
    if train is not None and factor > 1 and not is_vector_quantized(vae.config):
        count = min(TRAINING, max(1, FITTED_PIXELS // before[0, ..., 0].size))
        known = np.stack([train.image(int(i)) for i in evenly_spaced_indices(len(train), count)])
        every = before.shape[3] * factor**2  # of a patch: with as many numbers nothing is lost
        seen, held_out = as_seen(to_images(known)), as_seen(to_images(before))
        found = round(pca_psnr(seen, held_out, factor, min(channels, every)), 2)
        floor = {"psnr": found, "channels": channels, "factor": factor, "margin": MARGIN}
    return {"floor": floor, "chroma": colour_gains(before, after)}


def complaints(value: float, found: dict[str, Any]) -> list[Complaint]:
    """What is wrong with an autoencoder of PSNR `value` in dB and the numbers of `quality`; none if it is fine."""
    wrong, floor = [], found["floor"]
    if floor and value < min(floor["psnr"] + MARGIN, ENOUGH):
        text = f"not trained: {value:.1f} dB, where {linear_text(floor)} ({MARGIN:g} dB more is the least)"
        advice = "train it longer, take vae.model.kind: linear, or more vae.model.latent_channels (8 to 16)"
        wrong.append(Complaint(text, advice, True))
    gains = {name: gain for name, gain in ((found["chroma"] or {}).get("gains") or {}).items() if gain is not None}
    for lost, word in ((True, "loses"), (False, "weakens")):
        named = [f"{name} (gain {gain:.2f})" for name, gain in gains.items() if gain < WEAK and (gain < LOST) == lost]
        if named:
            advice = "more vae.model.latent_channels or a longer training: these colours cannot be generated"
            wrong.append(Complaint(f"{word} {', '.join(named)}", advice, lost))
    return wrong


def linear_text(floor: dict[str, Any]) -> str:
    """'a linear map to 4 numbers for each 4 x 4 patch reaches 20.5 dB'."""
    side = floor["factor"]
    return f"a linear map to {floor['channels']} numbers for each {side} x {side} patch reaches {floor['psnr']:.1f} dB"


def facts(found: dict[str, Any]) -> str:
    """What the numbers of `quality` are, in words: 'colour error 0.012, gains: red-cyan 0.99, ...'; "" for none."""
    said = [linear_text(found["floor"])] if found["floor"] else []
    if chroma := found["chroma"]:
        gains = [f"{name} {gain:.2f}" for name, gain in chroma["gains"].items() if gain is not None]
        said.append(f"colour error {chroma['error']:.3f}" + (f", gains: {', '.join(gains)}" if gains else ""))
    return "; ".join(said)
