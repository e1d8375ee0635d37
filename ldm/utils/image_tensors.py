"""Pixels as files have them, uint8 (B, H, W, C), and images as networks take them, float (B, C, H, W) in [-1, 1]."""

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
