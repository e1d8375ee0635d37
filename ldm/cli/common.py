"""What several commands share: checks of options before the work, progress, and the limits of one call."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

MAX_IMAGES = 4096  # pictures in one call
MAX_SCALE = 64


def check_writable(path: Path, endings: tuple[str, ...] = (".png",), option: str = "--output") -> None:
    """Fail before the work, not after it."""
    if path.suffix.lower() not in endings:
        raise UserError(f"{option} must end in {' or '.join(endings)}, got {str(path)!r}")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file in it")
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"{option} {path} cannot be written: {place} is not a writable folder")


def wants_gpu(device: str | None) -> bool:
    """Whether a GPU was asked for; or nothing was, and a driver for CUDA is here."""
    if device is not None:
        return device != "cpu"
    return any(Path(place).exists() for place in ("/dev/nvidiactl", "/dev/dxg", "C:/Windows/System32/nvcuda.dll"))


def progress(steps: int):
    """A callback that shows the step on a terminal, and nothing in a log file."""
    if not sys.stderr.isatty():
        return None

    def show(step: int, timestep, latents) -> None:
        end = "\r\033[K" if step + 1 == steps else ""
        print(f"\rstep {step + 1}/{steps}{end}", end="", file=sys.stderr, flush=True)

    return show


def sheet(images: list["Image.Image"], columns: int) -> "Image.Image":
    """Pictures in reading order, edge to edge."""
    from PIL import Image

    width, height = images[0].size
    sheet = Image.new(images[0].mode, (width * columns, height * -(-len(images) // columns)))
    for i, image in enumerate(images):
        sheet.paste(image, (width * (i % columns), height * (i // columns)))
    return sheet
