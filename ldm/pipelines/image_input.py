"""Images that people give (a path, a PIL image, an array or a tensor of any size) as the autoencoder wants them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.formats.decoding import MAX_BYTES, ImageError
from ldm.formats.image_arrays import decode_image, fit_image
from ldm.pipelines.pipeline import Pipeline
from ldm.utils.errors import UserError
from ldm.utils.image_sizes import size_of

ImageInput: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor


def read_images(
    pipeline: Pipeline,
    image: ImageInput | Sequence[ImageInput],
    resize: str = "pad",
    background: int = 255,
    size: Mapping[str, Any] = MappingProxyType({}),
) -> Tensor:
    """Images (n, C, H, W) in [0, 1], float32, brought by `ldm.formats.image_arrays.fit_image` to the model's size.

    Or to the "height" and "width" in `size`. Raises: ValueError for a size that the model cannot generate.
    """
    channels, *shape = pipeline.image_shape_of(size.get("height"), size.get("width"))
    read = (read_image(each, channels, background) for each in each_image(image))
    fitted = np.stack([fit_image(each, size_of(shape), resize, background) for each in read])
    return torch.from_numpy(fitted).permute(0, 3, 1, 2).float() / 255


def each_image(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """The images of a list, or of a batch (n, H, W, C) or tensor (n, C, H, W), as the pipeline gives them."""
    if isinstance(images, list | tuple):
        return [one for some in images for one in each_image(some)]
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.is_floating_point() else images).numpy()
        images = np.moveaxis(images, -3, -1) if images.ndim > 2 else images
    return list(images) if isinstance(images, np.ndarray) and images.ndim == 4 else [images]


def read_image(image: ImageInput, channels: int, background: int) -> np.ndarray:
    """uint8 (H, W, channels), upright; of a batch the first.

    Raises: UserError, in one line, whatever the file holds.
    """
    image = each_image(image)[0]
    name = image if isinstance(image, str | Path) else f"the {type(image).__name__}"
    try:
        return decode_image(_source(image), channels, background)
    except ImageError as error:
        raise UserError(f"{name} cannot be used: {error}; give an image such as a PNG or JPEG") from None


def _source(image: ImageInput) -> Path | Image.Image:
    """What one function decodes, so that an image is the same as a file, as an object and as an array."""
    if isinstance(image, str | Path):
        return _ordinary(Path(image))
    if isinstance(image, np.ndarray):
        return Image.fromarray(_array(image))
    if isinstance(image, Image.Image):
        return image
    raise ImageError("it is no path, PIL image or array")


def _ordinary(path: Path) -> Path:
    """The path, unless to read what is there would take forever."""
    if path.exists() and (not path.is_file() or path.stat().st_size > MAX_BYTES):
        raise ImageError(f"it is no file, or larger than {MAX_BYTES:,} bytes")
    return path


def _array(array: np.ndarray) -> np.ndarray:
    """An array as uint8 (H, W) or (H, W, 3 or 4)."""
    if array.dtype.kind == "f" and array.size and not (array.min() >= 0 and array.max() <= 1):
        raise ImageError(f"float values must be from 0 to 1, got {array.min():g} to {array.max():g}")
    if array.dtype.kind in "fb":
        array = np.rint(array * 255.0).astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)):
        got = f"{array.dtype} {array.shape}"
        raise ImageError(f"an array must be uint8, bool or float 0 to 1, (H, W) or (H, W, 1, 3 or 4), got {got}")
    return array[..., 0] if array.shape[2:] == (1,) else array
