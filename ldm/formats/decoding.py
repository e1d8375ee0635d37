"""Any image file in, an upright Pillow image out: one way for training and for `ldm data check` alike.

What is applied, in this order: the pixel cap, the first frame of an animation, the full scale of 16-bit and float
images, transparency (composited on a grey level the caller names, or kept), colour to RGB or grey (ITU-R 601 luma),
and the EXIF orientation. Colour profiles are not applied: values are taken as sRGB. Whatever a decoder raises is an
`ImageError` with a short reason, because decoders raise far more than OSError (TypeError, SyntaxError, ...).

Processes that decode import this module and no NumPy, whose import would be half of their start; `image_arrays` has
the same as arrays.
"""

import functools
import hashlib
import io
import json
import struct
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image, ImageChops, UnidentifiedImageError

from ldm.formats.optional_decoders import open_extra
from ldm.utils.image_sizes import Size, nearest_size, size_of

# Formats that Pillow decodes itself and that a signature identifies: nothing that starts another program (EPS), and
# nothing so loosely marked that any file may pass for it (TGA, PCX).
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")
USUAL_FORMATS = FORMATS[:2]
SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .mpo .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .avif .avifs "
    ".jp2 .j2k .jpx .qoi".split()
)
MAX_PIXELS = 89_478_485  # a quarter GiB of RGB; also where Pillow begins to warn
MAX_BYTES = 2**29  # of one encoded image: MAX_PIXELS of six bytes, uncompressed
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by channels
DECODE_VERSION = 3  # part of every cache key: raise it when the same file would give other pixels
REDUCING_GAP = 3.0  # down to this many times the final size an image may be shrunk by cheaper means

_TURNS = {  # EXIF orientation -> Pillow transposition
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
# how Pillow names the depths of a PNG that it brings to 8 bits -> the same for a level of that depth
_TO_EIGHT_BITS = {"L;2": lambda level: level * 85, "L;4": lambda level: level * 17, "RGB;16B": lambda level: level >> 8}


Encoded: TypeAlias = bytes | Path | Image.Image


class ImageError(Exception):
    """An image that cannot be used; the message is the reason, in one short line without the file's name."""


@contextmanager
def quiet_decoders():
    """Keep Pillow's warnings (size, broken EXIF) off the terminal while many images are read.

    Put it around the whole loop, not around each image: warning filters belong to the process, not to a thread.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(
    source: Encoded,
    channels: int = 3,
    background: int = 255,
    max_pixels: int = MAX_PIXELS,
    enough: int = 0,
    extras: bool = False,
) -> tuple[Image.Image, dict[str, Any]]:
    """One image, upright, in the mode of `MODES`, and what its file was: {"format": "PNG", "mode": "RGBA",
    "transparent": True}. It is transparent if any pixel is not opaque.

    Args:
        source: the encoded file, as bytes or as a path; or an image that Pillow has opened or made.
        channels: 1 for grey, 3 for RGB, 4 for RGB and straight alpha, where invisible pixels are black.
        background: grey level 0..255 on which transparent pixels are composited, unless alpha is kept.
        max_pixels: more than this many pixels are refused before anything is decompressed.
        enough: a JPEG may come out a whole fraction smaller, but with no side below this; 0 = always at full size.
        extras: whether bytes may be in a format of `optional_decoders` too: for processes under limits.
    Raises: ImageError: for every error in the file, with the reason.
    """
    if channels not in MODES:
        raise ValueError(f"channels must be 1, 3 or 4, got {channels}")
    try:
        opened, kind = _opened(source, enough, extras)
        with opened as image:
            _check_size(image, max_pixels)
            _scale_transparency(image)
            about: dict[str, Any] = {"format": kind, "mode": image.mode}
            if enough:
                image.draft(None, (enough, enough))
            image.load()
            _check_size(image, max_pixels)
            colour, alpha = _colour_and_alpha(image)
            about["transparent"] = alpha is not None and any(alpha.histogram()[:255])
            flat = _flatten(colour, alpha, MODES[channels], background)
            turn = _TURNS.get(_orientation(image))
            return flat if turn is None else flat.transpose(turn), about
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_reason(error, source)) from error


def fitted(image: Image.Image, resolution: int | Size, resize: str, background: int = 255) -> Image.Image:
    """An image in a mode of `MODES` as a square of `resolution` pixels, or of this height and width.

    "crop" takes the largest centred part of that aspect ratio, "pad" keeps the complete image and fills up with the
    background, "stretch" distorts. Shrinking is antialiased (Lanczos), enlarging is bicubic; an image of the right size
    is not touched.

    Alpha is padded with transparency, and resized with the colours multiplied by it, so that invisible ones do not
    bleed into the edges.
    """
    columns, rows = image.size
    height, width = size_of(resolution)
    if resize == "crop":  # whole pixels: no blur when the part has the size already
        across = min(columns, max(1, round(rows * width / height)))
        down = min(rows, max(1, round(columns * height / width)))
        left, top = (columns - across) // 2, (rows - down) // 2
        return _resized(image, (width, height), (left, top, left + across, top + down))
    if resize == "stretch":
        return _resized(image, (width, height), (0, 0, columns, rows))
    if resize != "pad":
        raise ValueError(f"resize must be 'crop', 'pad' or 'stretch', got {resize!r}")
    scale = min(width / columns, height / rows)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    fill = (0,) * 4 if image.mode == "RGBA" else (background,) * len(image.getbands())
    canvas = Image.new(image.mode, (width, height), fill)
    canvas.paste(_resized(image, size, (0, 0, columns, rows)), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def fit(data: bytes, sizes: Sequence[Size], channels: int, resize: str, background: int) -> bytes:
    """An image as training takes it: a byte, the index of its size (see `nearest_size`), and uint8 (h, w, channels).

    Raises: ImageError.
    """
    enough = round(REDUCING_GAP * max(map(max, sizes)))
    image, _ = decode(data, channels, background, enough=enough, extras=True)
    index = nearest_size(sizes, (image.height, image.width))
    return bytes([index]) + fitted(image, sizes[index], resize, background).tobytes()


def shrink(data: bytes, side: int) -> bytes:
    """An image in RGB, its longer side at most `side`: its width and height, 4 bytes each, and its pixels.

    Raises: ImageError.
    """
    image, _ = decode(data, enough=side, extras=True)
    scale = side / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = _resized(image, size, (0, 0, *image.size))
    return struct.pack("<II", *image.size) + image.tobytes()


def look(data: bytes, channels: int = 3) -> bytes:
    """What one image is like, as JSON: sides, digest of the pixels, blank, grey, and what `decode` says.

    Args:
        channels: 3, or 4 if transparency is kept.
    Raises: ImageError.
    """
    image, about = decode(data, channels, extras=True)
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()
    bands = image.split()
    blank = all(low == high for low, high in (band.getextrema() for band in bands))
    grey = not any(ImageChops.difference(bands[0], band).getbbox() for band in bands[1:3])
    return json.dumps(
        {"width": image.width, "height": image.height, "digest": digest, "blank": blank, "grey": grey, **about}
    ).encode()


def _resized(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    if size == (box[2] - box[0], box[3] - box[1]):
        return image.crop(box)
    shrinks = size[0] * size[1] < (box[2] - box[0]) * (box[3] - box[1])
    kernel = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    if image.mode == "RGBA":  # Pillow multiplies by alpha itself, but then reduces nothing first
        return _resized(image.convert("RGBa"), size, box).convert("RGBA")
    # photos are first reduced to three times the size: ten times faster, at most about 2/255 different
    return image.resize(size, kernel, box=box, reducing_gap=REDUCING_GAP)


def _opened(source: Encoded, enough: int, extras: bool) -> tuple[AbstractContextManager[Image.Image], str | None]:
    """The image, not yet decoded, which is closed afterwards unless it was given as one; and its format."""
    if isinstance(source, Image.Image):
        return nullcontext(source), source.format
    for formats in (USUAL_FORMATS, None):  # most files need no other decoder to be loaded
        with suppress(UnidentifiedImageError):
            image = Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats or _formats()
            )
            return image, image.format
    found = open_extra(source, enough) if extras and isinstance(source, bytes) else None
    if found is None:
        raise UnidentifiedImageError
    return found


def _scale_transparency(image: Image.Image) -> None:
    """Bring a PNG's transparent level or colour to 8 bits, as Pillow will its pixels; it leaves the level alone.

    Before the pixels are loaded: afterwards the depth is not known any more. Of 16 bits the upper 8 are compared.
    """
    declared = image.info.get("transparency")
    tiles = getattr(image, "tile", None)  # how its file is coded; an image that was made has none
    to_eight_bits = _TO_EIGHT_BITS.get(tiles[0].args) if image.format == "PNG" and tiles else None
    if declared is not None and to_eight_bits is not None:
        levels = tuple(map(to_eight_bits, declared if isinstance(declared, tuple) else (declared,)))
        image.info["transparency"] = levels if isinstance(declared, tuple) else levels[0]


@functools.cache
def _formats() -> list[str]:
    """The allowed formats this build of Pillow has (AVIF and JPEG2000 are optional)."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} pixels are more than the {max_pixels} allowed")
    if width * height == 0:
        raise ImageError("has no pixels")


def _colour_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours in mode "1", "L" or "RGB", and alpha in mode "L", None where there is none."""
    if image.mode == "F" or image.mode.startswith("I"):
        from ldm.formats.deep_images import eight_bits  # with NumPy, for the few that need it

        return eight_bits(image)
    if image.has_transparency_data:
        whole = image.convert("LA") if image.mode == "La" else image
        whole = whole.convert("RGBA")
        return whole.convert("RGB"), whole.getchannel("A")
    return image if image.mode in ("1", "L", "RGB") else image.convert("RGB"), None


def _flatten(colour: Image.Image, alpha: Image.Image | None, mode: str, background: int) -> Image.Image:
    """An opaque image in mode "L" or "RGB", or one with its alpha in mode "RGBA"."""
    if mode == "RGBA":
        whole = colour.convert("RGB")
        whole.putalpha(255 if alpha is None else alpha)
        seen = Image.new(mode, whole.size)
        seen.paste(whole, mask=whole.getchannel("A").point(lambda level: 255 if level else 0))
        return seen
    colour = colour if colour.mode == mode else colour.convert(mode)
    if alpha is None:
        return colour
    canvas = Image.new(mode, colour.size, background if mode == "L" else (background,) * 3)
    canvas.paste(colour, mask=alpha)  # rounds colour * a + background * (1 - a) to the nearest level
    return canvas


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied; 1 (upright) where the EXIF block cannot be read."""
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # broken metadata does not spoil the pixels
        return 1


def _reason(error: Exception, source: Encoded) -> str:
    if isinstance(error, UnidentifiedImageError):
        if source == b"" or (isinstance(source, Path) and source.stat().st_size == 0):
            return "the file is empty"
        return "not an image in a known format, or cut off at its start"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "more pixels than allowed"
    words = " ".join(str(error).split())[:160]
    return (
        words
        if words and (isinstance(error, OSError) or type(error) is ValueError)
        else f"{type(error).__name__}: {words}"
    )
