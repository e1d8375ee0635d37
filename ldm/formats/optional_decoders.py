"""HEIC and SVG, where the extra `formats` is installed; only for processes that decode under limits.

An SVG is a program that may name other files. One that names anything outside itself is refused.
"""

import functools
import io
from functools import partial
from importlib.util import find_spec

from PIL import Image

EXTRA_SUFFIXES = {".heic": "pillow_heif", ".heif": "pillow_heif", ".hif": "pillow_heif", ".svg": "resvg_py"}
SHORTER_SIDE = 512  # of an SVG that is drawn for no resolution in particular
_XML = (b"<svg", b"<?xml", b"<!--", b"<!DOCTYPE svg")


@functools.cache
def extra_suffixes() -> frozenset[str]:
    """Those of the files that this installation reads by optional packages."""
    return frozenset(suffix for suffix, module in EXTRA_SUFFIXES.items() if find_spec(module) is not None)


def open_extra(data: bytes, enough: int) -> tuple[Image.Image, str] | None:
    """The image, not yet decoded, and its format; None if `data` is in no such format or the package is not there.

    An SVG is drawn with its shorter side at `enough` pixels, or at `SHORTER_SIDE` for 0.

    Raises: ValueError: for an SVG that is none, or that names other files.
    """
    if data[4:8] == b"ftyp" and ".heic" in extra_suffixes():
        from pillow_heif import register_heif_opener

        register_heif_opener()
        return Image.open(io.BytesIO(data), formats=["HEIF"]), "HEIF"
    if data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_XML) and ".svg" in extra_suffixes():
        return Image.open(io.BytesIO(_drawn(data, enough or SHORTER_SIDE)), formats=["PNG"]), "SVG"
    return None


def _drawn(data: bytes, side: int) -> bytes:
    """An SVG as a PNG whose shorter side has `side` pixels."""
    from resvg_py import svg_to_bytes

    text = data.decode("utf-8-sig")
    _check_references(text)
    drawn = partial(svg_to_bytes, svg_string=text, skip_system_fonts="<text" not in text)  # looking fonts up takes long
    png = bytes(drawn(width=side))
    with Image.open(io.BytesIO(png)) as image:
        wide = image.height < side
    return bytes(drawn(height=side)) if wide else png


def _check_references(text: str) -> None:
    """Raises: ValueError: if the drawing names a file or address, which it would then contain."""
    from xml.parsers import expat

    def start(element: str, attributes: dict[str, str]) -> None:
        for name, value in attributes.items():
            is_link = element.rpartition(":")[2] == "a"  # to click on: nothing is loaded
            if name.rpartition(":")[2] == "href" and not is_link and not value.strip().startswith(("#", "data:")):
                raise ValueError(f"the SVG names another file ({value.strip()[:60]}): put it in as data")

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = start
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise ValueError(f"no well-formed SVG: {error}") from None
