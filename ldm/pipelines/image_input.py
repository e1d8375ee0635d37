"""Images that people give (a path, a PIL image or an array of any size and mode) as the autoencoder wants them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldm.formats.decoding import MAX_BYTES, ImageError, decode_image, fit_image
from ldm.pipelines.pipeline import Pipeline
from ldm.utils.errors import UserError

ImageInput: TypeAlias = str | Path | Image.Image | np.ndarray


def read_images(
    pipeline: Pipeline, image: ImageInput | Sequence[ImageInput], resize: str = "pad", background: int = 255
) -> Tensor:
    """Images (n, C, H, W) in [0, 1], float32, brought to the model's square by `ldm.formats.decoding.fit_image`."""
    channels, height, width = pipeline.image_shape
    if height != width:
        raise ValueError(f"images are brought to squares, and this model generates {width} x {height}")
    many: Sequence[Any] = image if isinstance(image, list | tuple) else [image]
    square = np.stack([fit_image(read_image(each, channels, background), height, resize, background) for each in many])
    return torch.from_numpy(square).permute(0, 3, 1, 2).float() / 255


def read_image(image: ImageInput, channels: int, background: int) -> np.ndarray:
    """uint8 (H, W, channels), upright. Raises: UserError, in one line, whatever the file holds."""
    name = image if isinstance(image, str | Path) else f"the {type(image).__name__}"
    try:
        source = _ordinary(Path(image)) if isinstance(image, str | Path) else _encoded(image)
        return decode_image(source, channels, background)
    except ImageError as error:
        raise UserError(f"{name} cannot be used: {error}; give an image such as a PNG or JPEG") from None


def _ordinary(path: Path) -> Path:
    """The path, unless to read what is there would take forever."""
    if path.exists() and (not path.is_file() or path.stat().st_size > MAX_BYTES):
        raise ImageError(f"it is no file, or larger than {MAX_BYTES:,} bytes")
    return path


def _encoded(image: Image.Image | np.ndarray) -> bytes:
    """A file of it without loss, so that one function decides what becomes of every mode."""
    buffer = io.BytesIO()
    try:
        image = Image.fromarray(_array(image)) if isinstance(image, np.ndarray) else image
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data and not image.mode.startswith("I"):
            image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        elif image.mode not in ("1", "L", "RGB", "I", "F", "I;16"):
            image = image.convert("RGB")
        image.save(buffer, "TIFF")
    except (OSError, SyntaxError, TypeError, ValueError, AttributeError, Image.DecompressionBombError) as error:
        raise ImageError(" ".join(str(error).split())[:160] or type(error).__name__) from error
    return buffer.getvalue()


def _array(array: np.ndarray) -> np.ndarray:
    """An array as uint8 (H, W) or (H, W, 3 or 4)."""
    if array.dtype.kind == "f" and array.size and not (array.min() >= 0 and array.max() <= 1):
        raise ImageError(f"float values must be from 0 to 1, got {array.min():g} to {array.max():g}")
    if array.dtype.kind in "fb":
        array = np.rint(array * 255.0).astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ImageError(f"an array must be uint8, bool or float, (H, W) or (H, W, 1, 3 or 4), got {array.shape}")
    return array[..., 0] if array.shape[2:] == (1,) else array
