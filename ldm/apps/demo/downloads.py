"""An image as files to keep: a PNG of a chosen size, and the outline as an SVG, both with the settings in them."""

import base64
import html
import io
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.pipelines.image_metadata import KEY, entries
from ldm.utils.image_grid import enlarged

TIMES = (1, 2, 4, 8, 16)  # enlargements on offer, of every pixel
MAX_SIDE = 4096  # pixels of an enlarged image


def png(image: Image.Image, times: int, job: dict[str, Any], key: str = KEY) -> bytes:
    """A PNG of an image as the model generated it, each pixel enlarged; `job` says so too."""
    times = max(1, min(times, MAX_SIDE // max(image.size)))
    notes, buffer = PngInfo(), io.BytesIO()
    for name, text in entries({**job, "scale": times}, key).items():
        notes.add_itxt(name, text)
    enlarged(image, times).save(buffer, format="PNG", pnginfo=notes)
    return buffer.getvalue()


def outline(image: Image.Image, job: dict[str, Any], key: str = KEY) -> bytes | None:
    """The SVG of what stands out from the ground of an image; None if it is blank."""
    from ldm.apps.font.vectorize import svg, trace

    traced = trace(image)
    note = entries({**job, "scale": 1}, key)[key]
    return svg([traced], 1, job.get("prompt") or "", note).encode() if traced.contours else None


def links(image: Image.Image, times: int, job: dict[str, Any], key: str = KEY) -> str:
    """Both files as links that carry them, in HTML; the SVG of grey images alone: an outline has one colour."""
    name = f"image-{job.get('seed', 0)}"
    found = [_link(f"{name}.png", "image/png", png(image, times, job, key))]
    if image.mode == "L":
        drawn = outline(image, job, key)
        found += [_link(f"{name}.svg", "image/svg+xml", drawn)] if drawn else ["no outline: the image is blank"]
    return f"<p class='files'>Download {' or '.join(found)}</p>"


def _link(name: str, kind: str, content: bytes) -> str:
    address = data_address(content, kind)
    return f"<a download='{html.escape(name)}' href='{address}'>{html.escape(name)} ({_size(len(content))})</a>"


def _size(count: int) -> str:
    return f"{count / 1024:.1f} KiB"


def data_address(content: bytes, kind: str) -> str:
    """An address that holds its content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
