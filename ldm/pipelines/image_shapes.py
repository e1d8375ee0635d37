"""The shapes of a model's latents and images, by the settings of its networks; without torch."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any, TypeAlias

from ldm.utils.image_sizes import downsampling_factor, size_of

Shape: TypeAlias = tuple[int, int, int]  # (channels, height, width)
WHOLE: Any = Integral  # numpy's too
MOST_PIXELS = 2048  # of a side


def latent_shape(unet: Mapping[str, Any]) -> Shape:
    """(c, h, w) of one image's latents."""
    return unet["in_channels"], *size_of(unet["sample_size"])


def image_shape(vae: Mapping[str, Any], unet: Mapping[str, Any]) -> Shape:
    """(C, H, W) of one image."""
    _, height, width = latent_shape(unet)
    return vae["in_channels"], height * downsampling_factor(vae), width * downsampling_factor(vae)


def size_step(vae: Mapping[str, Any], unet: Mapping[str, Any]) -> int:
    """What heights and widths are multiples of: the VAE's factor, times 2 for each halving in the U-Net."""
    widths = unet.get("block_out_channels") or unet.get("inner", {}).get("block_out_channels") or (1,)
    return downsampling_factor(vae) * 2 ** (len(widths) - 1)


def resized(shape: Shape, step: int, height: int | None = None, width: int | None = None) -> Shape:
    """(C, H, W) of an image of this size in pixels, None = that of `shape`. Raises: ValueError."""
    channels, *sides = shape
    for i, (name, side) in enumerate((("height", height), ("width", width))):
        if side is not None and side != sides[i]:
            if sides[i] == 1:
                raise ValueError(f"{name} must be None for a model of points, got {side!r}")
            sides[i] = check_side(name, side, step)
    return channels, sides[0], sides[1]


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """`value` as an int from `least` to `most`. Raises: ValueError."""
    if isinstance(value, bool) or not isinstance(value, WHOLE) or value < least or (most and value > most):
        allowed = f"{least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number, {allowed}, got {value!r}")
    return int(value)


def check_side(name: str, value: Any, step: int) -> int:
    """`value` as an int, a multiple of `step` up to `MOST_PIXELS`. Raises: ValueError."""
    side = check_count(name, value, step, MOST_PIXELS)
    if side % step:
        below = side // step * step
        raise ValueError(f"{name} must be a multiple of {step}, got {side}: {below} and {below + step} are the nearest")
    return side
