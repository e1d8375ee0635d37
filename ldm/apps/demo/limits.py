"""What a visitor may ask of the demo, whatever the page shows: requests need not come from the page."""

import math
import unicodedata
from typing import Any

from ldm.utils.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 100),
    "guidance": (0, 20),
    "number": (1, 16),
    "seed": (0, 2**31 - 1),
    "frames": (2, 24),
    "strength": (0, 1),
    "height": (16, 1024),
    "width": (16, 1024),
}
MAX_DRAWN = 4 * 2**20  # pixels of all images of one request with a size of its own
MAX_LETTERS = 300  # of a prompt; a model reads far fewer tokens
MAX_WAITING = 16  # in the queue
MAX_BYTES = 4 * 2**20  # of an uploaded image
MAX_PIXELS = 4 * 2**20  # of it, once unpacked
MAX_LAYERS = 4  # of paint over it
MAX_JSON = 64 * 2**10  # bytes of any other request


def whole(name: str, value: Any) -> int:
    """`value` as an int in the range of `name`. Raises: UserError, also for a text or a fraction."""
    number = real(name, value)
    if number != int(number):
        raise UserError(f"{name} must be a whole number, got {number:g}")
    return int(number)


def real(name: str, value: Any) -> float:
    """`value` as a float in the range of `name`. Raises: UserError, also for a text or nan."""
    least, most = RANGES[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= value <= most:
        raise UserError(f"{name} must be a number from {least:g} to {most:.10g}, got {_short(value)}")
    return float(value)


def check_pixels(count: int, height: int, width: int) -> None:
    """Raises: UserError if so many images of this size are too many."""
    if count > (most := max(1, MAX_DRAWN // (height * width))):
        raise UserError(f"{count} images of {width} x {height} pixels are too many at once: {most} are allowed")


def text(name: str, value: Any) -> str | None:
    """A text with single blanks, None if there is none in it. Raises: UserError if it is too long or has no glyphs."""
    if value is not None and not isinstance(value, str):
        raise UserError(f"{name} must be a text, got {_short(value)}")
    value = value or ""
    if len(value) > MAX_LETTERS:
        raise UserError(f"{name} may have {MAX_LETTERS} letters, got {len(value)}: say less")
    words = " ".join(value.split())
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in words):
        raise UserError(f"{name} has characters in it that are no letters (control characters)")
    return words or None


def choice(name: str, value: Any, allowed: list[str]) -> str:
    """`value`, if it is one of `allowed`. Raises: UserError."""
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(allowed) or 'none here'}, got {_short(value)}")
    return value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
