"""A linear map of patches of f x f pixels, held by the encoder of an `AutoencoderTiny` without blocks.

The convolutions are those of the stock class, which loads everywhere. They have c f^2 channels from full resolution
on, and nearly all weights are 0. `project` gives the same latents by one convolution of stride f: for colour images,
f = 8 and 16 latent channels by 48 multiplications a pixel in place of 115,000.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional as F

_FOUND: WeakKeyDictionary[Any, tuple[Any, tuple[Tensor, Tensor] | None]] = WeakKeyDictionary()


@torch.no_grad()
def hold_projection(vae: Any, weights: Float64[Tensor, "k d"], biases: Float64[Tensor, " k"]) -> None:
    """Put a projection of patches of images in [-1, 1] into the encoder, exactly.

    The first convolution copies the image, each of stride 2 moves the 2 x 2 pixels of its windows into channels, and
    the last one projects. `AutoencoderTiny.encode` halves images to [0, 1] first, which the last one undoes.
    """
    *gathering, last = _convolutions(vae)
    for conv, wanted in zip(gathering, _gathering(vae), strict=True):
        conv.weight.copy_(wanted)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    nn.init.zeros_(last.weight)
    last.weight[:, _order(vae), 1, 1] = 2 * weights.to(last.weight)
    last.bias.copy_((biases - weights.sum(1)).to(last.bias))


def project(vae: Any, images: Float[Tensor, "b c H W"]) -> Float[Tensor, "b k h w"] | None:
    """z of images in [-1, 1] by one convolution; None if the encoder is no such projection."""
    last = _convolutions(vae)[-1]
    state = (last.weight.data_ptr(), last.weight._version, last.weight.dtype)
    known, found = _FOUND.get(vae, (None, None))
    if known != state:
        found = _held_projection(vae)
        _FOUND[vae] = state, found
    return found and F.conv2d(images, *found, stride=_factor(vae))


@torch.no_grad()
def _held_projection(vae: Any) -> tuple[Tensor, Tensor] | None:
    """Kernel (k, c, f, f) and biases (k,) of the projection that `hold_projection` put in; None if it did not."""
    (*gathering, last), order = _convolutions(vae), _order(vae)
    rest = last.weight.clone()
    rest[:, order, 1, 1] = 0
    biased = (conv.bias for conv in gathering if conv.bias is not None)
    same = (torch.equal(conv.weight, w.to(conv.weight)) for conv, w in zip(gathering, _gathering(vae), strict=True))
    if any(vae.config.num_encoder_blocks) or rest.any() or any(bias.any() for bias in biased) or not all(same):
        return None
    kernel = last.weight[:, order, 1, 1] / 2
    return kernel.unflatten(1, (vae.config.in_channels, _factor(vae), _factor(vae))), last.bias + kernel.sum(1)


def _factor(vae: Any) -> int:
    return 2 ** (len(vae.config.encoder_block_out_channels) - 1)


def _convolutions(vae: Any) -> list[nn.Conv2d]:
    return [layer for layer in vae.encoder.layers if isinstance(layer, nn.Conv2d)]


def _gathering(vae: Any) -> list[Tensor]:
    """The weights of all convolutions but the last."""
    channels = vae.config.in_channels
    first, *rest = (torch.zeros(conv.weight.shape) for conv in _convolutions(vae)[:-1])
    for c in range(channels):
        first[c, c, 1, 1] = 1
    for level, weight in enumerate(rest):
        for k in range(channels * 4**level):
            for position in range(4):
                weight[4 * k + position, k, 1 + position // 2, 1 + position % 2] = 1
    return [first, *rest]


def _order(vae: Any) -> list[int]:
    """Where the numbers of a patch, in the order of `torch.nn.functional.unfold`, are after all gatherings."""
    factor = _factor(vae)
    levels = factor.bit_length() - 1
    sides = range(factor)
    return [_gathered(c, y, x, levels) for c in range(vae.config.in_channels) for y in sides for x in sides]


def _gathered(channel: int, y: int, x: int, halvings: int) -> int:
    """The channel in which a pixel of a patch ends up after so many gatherings of 2 x 2."""
    index = channel
    for level in range(halvings):
        index = 4 * index + 2 * (y >> level & 1) + (x >> level & 1)
    return index
