"""Sizes of images, (height, width) in pixels, and the few sizes that images of many shapes are brought to."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Size: TypeAlias = tuple[int, int]  # (height, width)


def size_of(resolution: int | Sequence[int]) -> Size:
    """(height, width) of the side of a square, or of such a pair."""
    if isinstance(resolution, int):
        return resolution, resolution
    height, width = resolution
    return int(height), int(width)


def resolution_of(size: Sequence[int]) -> int | Size:
    """The inverse of `size_of`: one number for a square, as configs of networks and data have it."""
    height, width = size
    return int(height) if height == width else (int(height), int(width))


def downsampling_factor(config: Mapping[str, Any]) -> int:
    """Pixels per latent along each axis, by the settings of an autoencoder."""
    widths = config.get("block_out_channels") or config["decoder_block_out_channels"]
    return 2 ** (len(widths) - 1)


def bucket_sizes(size: Size, step: int) -> list[Size]:
    """`size`, and sizes of about as many pixels and other aspect ratios, from the widest to the tallest.

    Of A pixels, the shorter sides are the multiples of `step` from sqrt(A) / 2 to sqrt(A), and the longer ones those
    nearest to A divided by them; so ratios reach about 4 : 1 and 1 : 4.
    """
    area = math.prod(size)
    shorter = range(math.ceil(math.sqrt(area) / 2 / step) * step, math.isqrt(area) + 1, step)
    pairs = [(short, max(short, round(area / short / step) * step)) for short in shorter]
    sizes = {size, *pairs, *((long, short) for short, long in pairs)}
    return sorted(sizes, key=lambda one: (one[0] / one[1], one))


def nearest_size(sizes: Sequence[Size], size: Size) -> int:
    """The index of the size whose aspect ratio is nearest to that of `size`, by the ratio of the two."""
    wanted = math.log(size[0] / size[1])
    return min(range(len(sizes)), key=lambda i: abs(math.log(sizes[i][0] / sizes[i][1]) - wanted))
