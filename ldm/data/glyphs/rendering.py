"""Characters to pictures: grey, antialiased, centred per font, checked by their pixels, rendered once and cached.

Ground is 255 (white), ink goes down to 0. A glyph is drawn several times larger than asked and averaged down, so that
its place does not depend on whole pixels. Baselines differ between fonts; therefore a font's scale and origin come from
the union ink box of a few characters that fill their square, which is fitted to the cell with a margin.
"""

import hashlib
import io
import json
import logging
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm.utils.atomic_files import (
    NO_SPACE,
    exclusive_lock,
    read_checksummed,
    readable_io_errors,
    require_free_space,
    staged,
    write_checksummed,
)
from ldm.utils.errors import UserError

RENDERER_VERSION = 1  # part of every cache key: raise it when the pixels change
MARGIN = 0.05  # of the cell, on each side
SQUARE = "\u56fd\u570d\u5718\u9b31\u9ea4\u9a6b\u56cd\u91ab\u8b70\u85dd\u9f8d\u7e6a"  # characters that fill their square
REFERENCE = 256  # pixels per em at which the ink box is measured
ABSENT = "\U0010ffff"  # a noncharacter: every font draws its 'missing' picture for it

log = logging.getLogger(__name__)


def style_font(style: str) -> Path:
    """Return the font file of 'hei' (Noto Sans SC) or 'song' (Noto Serif SC), both OFL-1.1, from the font package."""
    try:
        import pylopdf_fonts_zh_cn as fonts
    except ImportError:
        raise UserError(
            "the glyph fonts are not installed: pip install pylopdf-fonts-zh-cn==0.1.1 (or install ldm with the extra "
            "'glyphs'), or name your own font in data.glyphs.font_file"
        ) from None
    return {"hei": fonts.sans_path, "song": fonts.serif_path}[style]()


def cached_glyphs(font: Path, characters: str, resolution: int, cache_dir: Path) -> tuple[Path, list[int]]:
    """Render `characters` with `font` unless the cache has them.

    Args:
        characters: one glyph each, in this order.
        resolution: side of the square pictures in pixels.
    Returns: the folder `<cache_dir>/glyphs/<digest>` with images.npy, uint8 (len(characters), resolution, resolution),
        and the sorted indices of the characters that this font cannot draw (blank, missing or clipped).
    Raises: UserError: unreadable font, no drawable character, or a cache folder that cannot be written.
    """
    try:
        data = font.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the font {font}: {error.strerror}; give a .ttf, .otf or .ttc file") from None
    key = "\n".join((hashlib.sha256(data).hexdigest(), str(resolution), str(RENDERER_VERSION), characters))
    folder = cache_dir / "glyphs" / hashlib.sha256(key.encode()).hexdigest()[:24]
    faults = _kept(folder)
    if faults is None:
        faults = _render_into(folder, font, characters, resolution)
    bad = sorted(i for indices in faults.values() for i in indices)
    if bad:
        named = {fault: "".join(characters[i] for i in indices[:20]) for fault, indices in faults.items() if indices}
        log.warning("%s: %d of %d glyphs skipped, for example %s", font.name, len(bad), len(characters), named)
    return folder, bad


def _kept(folder: Path) -> dict[str, list[int]] | None:
    """The indices of each fault in a cache entry, or None if a bit of it is not as it was written."""
    try:
        manifest = json.loads(read_checksummed(folder / "manifest"))
        with (folder / "images.npy").open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == manifest["images"]
        return manifest["faults"] if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _render_into(folder: Path, font: Path, characters: str, resolution: int) -> dict[str, list[int]]:
    """Write the cache entry, of which another process sees all or nothing; returns the indices of each fault."""
    with readable_io_errors(folder, NO_SPACE), exclusive_lock(folder):
        if (faults := _kept(folder)) is not None:  # built by another process while this one waited
            return faults
        require_free_space(folder.parent, len(characters) * resolution**2, "rendered glyphs")
        log.info("rendering %d glyphs of %s at %d pixels", len(characters), font.name, resolution)
        images, faults = render(font, characters, resolution)
        with staged(folder) as stage:
            array = io.BytesIO()  # numpy's own way to a file does not notice that a disk is full
            np.save(array, images, allow_pickle=False)
            (stage / "images.npy").write_bytes(array.getvalue())
            manifest = {"faults": faults, "images": hashlib.sha256(array.getvalue()).hexdigest()}
            write_checksummed(stage / "manifest", json.dumps(manifest).encode())
        return faults


def render(font: Path, characters: str, resolution: int) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Draw every character and find by their pixels those that came out wrong.

    Returns: uint8 (n, resolution, resolution), and the indices of 'blank', 'missing' (the font's picture for absent
        characters) and 'clipped' (ink on the cell's edge) ones.
    Raises: UserError: not a font, or nothing drawable.
    """
    factor = 4 if resolution <= 128 else 2
    pen = _Pen(font, resolution * factor, characters)
    absent = pen.draw(ABSENT)
    images = np.empty((len(characters), resolution, resolution), np.uint8)
    faults: dict[str, list[int]] = {"blank": [], "missing": [], "clipped": []}
    for i, character in enumerate(characters):
        large = pen.draw(character)
        if fault := _fault(large, absent):
            faults[fault].append(i)
        images[i] = np.asarray(large.reduce(factor))
    if sum(map(len, faults.values())) == len(characters):
        raise UserError(f"the font {font} draws none of the {len(characters)} characters: choose a Chinese font")
    return images, faults


def _fault(image: Image.Image, absent: Image.Image) -> str | None:
    pixels = np.asarray(image)
    if pixels.min() == 255:
        return "blank"
    if np.array_equal(pixels, np.asarray(absent)):
        return "missing"
    edge = min(pixels[0].min(), pixels[-1].min(), pixels[:, 0].min(), pixels[:, -1].min())
    return "clipped" if edge < 255 else None


class _Pen:
    """Draws one character at a time into a square of `side` pixels, at the font's own scale and origin."""

    def __init__(self, path: Path, side: int, characters: str):
        self.side = side
        left, top, right, bottom = self._ink_box(path, characters)
        scale = side * (1 - 2 * MARGIN) / max(right - left, bottom - top)
        self.font = _open_font(path, REFERENCE * scale)
        self.origin = (side / 2 - scale * (left + right) / 2, side / 2 - scale * (top + bottom) / 2)

    def draw(self, character: str) -> Image.Image:
        image = Image.new("L", (self.side, self.side), 255)
        ImageDraw.Draw(image).text(self.origin, character, fill=0, font=self.font, anchor="ls")
        return image

    @staticmethod
    def _ink_box(path: Path, characters: str) -> tuple[float, float, float, float]:
        """Union ink box around the baseline origin at REFERENCE pixels per em."""
        font = _open_font(path, REFERENCE)
        absent = bytes(font.getmask(ABSENT))
        for sample in (SQUARE, characters[:: max(1, len(characters) // 50)]):
            boxes = [font.getbbox(c, anchor="ls") for c in sample if bytes(font.getmask(c)) not in (absent, b"")]
            inked = np.array([box for box in boxes if box[2] > box[0] and box[3] > box[1]])
            if len(inked) >= min(3, len(sample)):
                return (*inked[:, :2].min(0).tolist(), *inked[:, 2:].max(0).tolist())
        raise UserError(f"the font {path} has too few Chinese characters to measure its square: choose another")


def _open_font(path: Path, size: float) -> ImageFont.FreeTypeFont:
    try:  # the basic layout engine is in every Pillow; the other one depends on the system
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise UserError(f"cannot read the font {path}: {error}; give a .ttf, .otf or .ttc file") from None
