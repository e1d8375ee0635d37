"""Classifier-free guidance as a wrapper around any denoiser, so that every sampler gets it unchanged.

prediction = uncond + scale (cond - uncond), with uncond from the null (or negative) caption; scale 1 is off.
Linear in the prediction, so the rule is the same for eps, v, x0 and flow velocity at one (x_t, t).
Source: Ho and Salimans 2022, arXiv 2207.12598, with scale = 1 + w in the paper's letters.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t, t, condition) -> prediction of x_t's shape


def guide(
    denoiser: Denoiser, condition: Tensor, negative: Tensor | None, scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Bind the conditions and the scale to `denoiser`.

    Args:
        denoiser: called once per step: with (B, ...) when guidance is off, else with (2B, ...), negatives first.
        condition: text states of the prompts, (B, L, D).
        negative: text states to lead away from, (B, L, D); None = guidance off, whatever the scale.
        scale: 1 = off; 0 = the negative alone; more than 1 exaggerates the prompt.

    Returns: a callable (x_t (B, ...), t: one for all or (B,)) -> guided prediction (B, ...).
    Raises: ValueError if the two conditions differ in shape.
    """
    if negative is None or scale == 1:
        return lambda x_t, t: denoiser(x_t, t, condition)
    if negative.shape != condition.shape:
        raise ValueError(f"negative must have condition's shape {tuple(condition.shape)}, got {tuple(negative.shape)}")
    both = torch.cat([negative, condition])

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        times = torch.cat([t, t]) if t.ndim else t
        uncond, cond = denoiser(torch.cat([x_t, x_t]), times, both).chunk(2)
        return uncond + scale * (cond - uncond)

    return guided
