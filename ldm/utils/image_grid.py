"""Contact sheets: many small pictures on one page, with labels, drawn by Pillow alone."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ldm.utils.atomic_files import atomic_write
from ldm.utils.errors import UserError
from ldm.utils.transparency import on_checkerboard

Picture = np.ndarray | Image.Image
FONT_SIZE = 11
LINE = FONT_SIZE + 3


def image_grid(
    images: Sequence[Picture],
    columns: int,
    labels: Sequence[str] | None = None,
    pad: int = 2,
    scale: int = 1,
    borders: Sequence[str | None] | None = None,
    background: str = "#d8d8d8",
    mode: str | None = "RGB",
) -> Image.Image:
    """Lay pictures out row by row in a grid.

    Args:
        images: PIL pictures or uint8 arrays, (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), of any sizes; every cell is as
            large as the largest picture.
        columns: pictures per row, >= 1; the last row may be shorter.
        labels: one line of text under each picture; a text wider than its cell is cut.
        pad: pixels around each picture; borders are drawn inside it.
        scale: each pixel is drawn as scale x scale (nearest neighbour, so nothing is smoothed).
        borders: a colour name per picture, or None for no border.
        background: colour between the pictures.
        mode: of the grid, where transparency shows a checkerboard; None = that of the first picture, and transparency
            is kept.
    Raises: UserError for no images, columns < 1, or labels and borders of another length.
    """
    if not len(images) or columns < 1 or scale < 1:
        raise UserError(
            f"a contact sheet needs images, columns >= 1 and scale >= 1, got {len(images)}, {columns}, {scale}"
        )
    for name, values in (("labels", labels), ("borders", borders)):
        if values is not None and len(values) != len(images):
            raise UserError(f"a contact sheet of {len(images)} images got {len(values)} {name}: give one for each")
    tiles = [_tile(image, scale, mode) for image in images]
    width = max(tile.width for tile in tiles) + 2 * pad
    height = max(tile.height for tile in tiles) + 2 * pad + (LINE if labels is not None else 0)
    columns = min(columns, len(tiles))
    fill: str | tuple[int, ...] = (0, 0, 0, 0) if tiles[0].mode == "RGBA" else background
    page = Image.new(tiles[0].mode, (columns * width, -(-len(tiles) // columns) * height), fill)
    draw = ImageDraw.Draw(page)
    for i, tile in enumerate(tiles):
        x, y = i % columns * width, i // columns * height
        if borders is not None and borders[i] is not None:
            draw.rectangle((x, y, x + tile.width + 2 * pad - 1, y + tile.height + 2 * pad - 1), fill=borders[i])
        page.paste(tile, (x + pad, y + pad))
        if labels is not None:
            text = _text(str(labels[i]), width - 2 * pad, background)
            page.paste(text, (x + pad, y + height - LINE))
    return page


def save_png(image: Image.Image, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Write an image atomically, with text entries by name."""
    buffer, info = io.BytesIO(), PngInfo()
    for name, entry in (text or {}).items():
        info.add_itxt(name, entry)
    image.save(buffer, format="PNG", pnginfo=info)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, buffer.getvalue())


def enlarged(image: Image.Image, scale: int) -> Image.Image:
    """Every pixel drawn as scale x scale: nothing is smoothed."""
    size = image.width * scale, image.height * scale
    return image if scale == 1 else image.resize(size, Image.Resampling.NEAREST)


def _tile(image: Picture, scale: int, mode: str | None) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise UserError(
                f"a contact sheet takes uint8 arrays or PIL images, got {image.dtype}: scale to 0..255 first"
            )
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    large = enlarged(image, scale)
    return large if mode is None else on_checkerboard(large).convert(mode)


def _text(text: str, width: int, background: str) -> Image.Image:
    """One line of text on a strip of its own, so that a long label never runs into the next cell."""
    strip = Image.new("RGB", (max(width, 1), LINE), background)
    ImageDraw.Draw(strip).text((0, 0), text, fill="black", font=ImageFont.load_default(FONT_SIZE))
    return strip


def points_image(points: np.ndarray, size: int = 256, reach: float = 4.0) -> Image.Image:
    """Points (N, d) as a picture: for d = 1 a histogram, else a map of how many fall where in the first two axes.

    The picture spans -reach .. reach each way; points beyond it are left out. Black is most, white is none.
    """
    edges = np.linspace(-reach, reach, size + 1)
    if points.shape[1] == 1:
        heights = np.histogram(points[:, 0], edges)[0]
        dark = np.arange(size, 0, -1)[:, None] <= heights / max(1, heights.max()) * size
    else:
        dark = np.histogram2d(-points[:, 1], points[:, 0], (edges, edges))[0]
        dark = np.minimum(1, dark / max(1, np.quantile(dark[dark > 0], 0.9) if dark.any() else 1))
    return Image.fromarray((255 * (1 - dark)).astype(np.uint8))
