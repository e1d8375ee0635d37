"""Pixels as files have them, uint8 (B, H, W, C), and images as networks take them, float (B, C, H, W) in [-1, 1].

With transparency C is 4, and alpha is straight (see `ldm.utils.transparency`). Networks are shown `premultiplied`
images, and losses compare images `as_seen`: colour counts only where it can be seen.
"""

import numpy as np
import torch
from torch import Tensor


def to_images(pixels: np.ndarray) -> Tensor:
    """uint8 (B, H, W, C) in 0..255 -> float32 (B, C, H, W) in [-1, 1]; floats, the coordinates of points, are kept."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    return images.div_(127.5).sub_(1) if pixels.dtype == np.uint8 else images


def to_pixels(images: Tensor) -> np.ndarray:
    """Float (B, C, H, W) in [-1, 1] -> uint8 (B, H, W, C), clipped and rounded."""
    scaled = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def premultiplied(images: Tensor) -> Tensor:
    """Images with alpha, (B, 4, H, W), their colours multiplied by it: (c + 1) a - 1, a in [0, 1]; others unchanged."""
    if images.shape[1] != 4:
        return images
    colour, alpha = images.split([3, 1], dim=1)
    return torch.cat([(colour + 1) * (alpha + 1) / 2 - 1, alpha], dim=1)


def as_seen(images: Tensor) -> Tensor:
    """Images with alpha, (B, 4, H, W), on black and on white, (B, 6, H, W); others unchanged.

    A mean over these channels is the mean over the two grounds, and 0 for what cannot be seen.
    """
    if images.shape[1] != 4:
        return images
    colour, alpha = premultiplied(images).split([3, 1], dim=1)
    return torch.cat([colour, colour + 1 - alpha], dim=1)


def seen_channels(channels: int) -> int:
    """How many channels `as_seen` gives."""
    return 6 if channels == 4 else channels
