"""A drawn image as outlines: clean closed paths with few nodes, for SVG (`Outline.svg`) and fonts (`font_file`).

An antialiased image says more than its pixels: where its grey crosses one half is known to a fraction of a pixel.
So what is traced is the 50% level set of the image, enlarged by a windowed sinc. It is cut at its corners, the
corners, which antialiasing rounds off, are made sharp again, and what lies between two of them is fitted with as few
lines and cubic Bezier curves as stay within a tolerance. docs/use/font.md has the numbers, and those of two tracing
libraries beside them.

Coordinates are pixels of the image, x to the right and y downwards from its upper left corner. Outer contours run
clockwise as seen, holes the other way, so that the even-odd and the nonzero rule fill the same.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

FAINT = 0.25  # an image in which nothing stands out more than this from the ground is blank
ENLARGE = 4  # times, before the level set is taken
STEP = 0.25  # pixels between the points along a level set
CALMED = 3  # times (1, 2, 1) / 4 over them, a Gaussian of 0.3 pixels: antialiased edges waver with the rows they cross
SPECK = 2.0  # square pixels: smaller islands and pinholes are left out
SMALL = 16.0  # pixels around: a shape too small for corners with straight sides beside them
TURN = 40.0  # degrees that the direction has to turn within 2 * REACH pixels to make a corner
REACH = 1.25
BLUNT = 0.75  # pixels beside a corner that antialiasing has bent, ...
STRAIGHT = 2.0  # ... and beyond them those which tell where the corner's sides would have led
WAVER = 1.5  # times the tolerance: so far a line may lie off, what is left of the wavering
KINK = 0.1  # sine of the angle by which a line may miss the direction of a smooth node
SHIFT = 1.0  # the most pixels by which a corner is moved outwards

Point = tuple[float, float]
Segment = tuple[Point, ...]  # one point: a line to it; three: a cubic Bezier curve with two handles to the third
Direction = np.ndarray | None  # a unit vector (2,); None at a corner, where any will do


@dataclass(frozen=True)
class Contour:
    """A closed path, whose last segment ends where it starts."""

    start: Point
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Outline:
    """The contours of one image of width x height pixels; none for a blank image."""

    width: int
    height: int
    contours: tuple[Contour, ...]

    @property
    def num_nodes(self) -> int:
        return sum(len(contour.segments) for contour in self.contours)

    def draw(self, pen: Any) -> None:
        """Draw onto a pen of fontTools, in pixels with y downwards."""
        for contour in self.contours:
            pen.moveTo(contour.start)
            *most, last = contour.segments
            for segment in most if len(last) == 1 else contour.segments:  # closing the path adds the last line
                (pen.lineTo if len(segment) == 1 else pen.curveTo)(*segment)
            pen.closePath()

    def polygons(self, parts: int = 16) -> list[np.ndarray]:
        """Every contour as a closed polygon (n, 2), with `parts` sides for each curve."""
        u = np.arange(1, parts + 1) / parts
        polygons = []
        for contour in self.contours:
            points = [np.array([contour.start])]
            for segment in contour.segments:
                curve = np.array([points[-1][-1], *segment])
                points.append(curve[1:] if len(segment) == 1 else _weights(u) @ curve)
            polygons.append(np.concatenate(points)[:-1])
        return polygons

    def path(self) -> str:
        """The `d` of an SVG path, to a hundredth of a pixel."""
        parts = []
        for contour in self.contours:
            parts.append(f"M{_numbers(contour.start)}")
            parts += [f"{'L' if len(segment) == 1 else 'C'}{_numbers(*segment)}" for segment in contour.segments]
            parts.append("Z")
        return "".join(parts)

    def svg(self, title: str = "", note: str = "") -> str:
        """The outline as an SVG document of one black path; see `svg`."""
        return svg([self], 1, title, note)


def svg(outlines: Sequence[Outline], columns: int, title: str = "", note: str = "") -> str:
    """Outlines in reading order as one SVG document, a path each, a user unit being a pixel.

    Args:
        outlines: one or more, of equal size.
        columns: how many lie beside each other, >= 1.
        title, note: plain text for the document's title and description.
    """
    width, height = outlines[0].width, outlines[0].height
    across, down = width * columns, height * -(-len(outlines) // columns)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" width="{across}" height="{down}">']
    lines += [f"<{name}>{_text(text)}</{name}>" for name, text in (("title", title), ("desc", note)) if text]
    for i, outline in enumerate(outlines):
        x, y = i % columns * width, i // columns * height
        moved = f' transform="translate({x} {y})"' if x or y else ""
        if outline.contours:
            lines.append(f'<path fill-rule="evenodd"{moved} d="{outline.path()}"/>')
    return "\n".join([*lines, "</svg>\n"])


def trace(image: "Image.Image | np.ndarray", tolerance: float = 0.1) -> Outline:
    """Trace what stands out from an image's ground.

    Args:
        image: a PIL image, or uint8 (H, W) or (H, W, 1 or 3); any ink on any ground, see `ink_of`.
        tolerance: how many pixels a fitted curve may lie off the level set, > 0; more of it makes fewer nodes.
    Returns: the outline, without contours if the image is blank.
    Raises: ValueError: a tolerance that is not positive, or an array of another kind.
    """
    from contourpy import contour_generator
    from PIL import Image

    if not tolerance > 0:
        raise ValueError(f"tolerance must be a number of pixels above 0, got {tolerance!r}")
    ink = ink_of(image)
    height, width = ink.shape
    padded = Image.fromarray(np.pad(ink, 2))  # so that every contour closes within the image
    size = (padded.width * ENLARGE, padded.height * ENLARGE)
    large = np.asarray(padded.resize(size, Image.Resampling.LANCZOS), np.float64)
    contours = []
    for line in contour_generator(z=large).lines(0.5):
        points = (np.asarray(line)[:-1] + 0.5) / ENLARGE - 2
        if abs(area(points)) >= SPECK:
            contours.append(_contour(_evenly(points), tolerance))
    return Outline(width, height, tuple(contours))


def ink_of(image: "Image.Image | np.ndarray") -> np.ndarray:
    """How far each pixel is from the ground to the ink, float32 (H, W) in [0, 1].

    The ground is the median colour along the image's edge, and the ink what differs from it most. All zeros for a
    image in which nothing differs by a quarter of the range. Of an image with transparency it is what is opaque.
    """
    from PIL import Image

    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)):
            raise ValueError(f"an image must be uint8 (H, W) or (H, W, 1, 3 or 4), got {image.dtype} {image.shape}")
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    if image.mode == "RGBA" and np.asarray(image.getchannel("A")).min() < 255:
        image = image.getchannel("A")
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distance = np.sqrt(((pixels - np.median(edge, axis=0)) ** 2).mean(axis=2))
    most = distance.max()
    return distance / most if most >= FAINT else np.zeros_like(distance)


def area(points: np.ndarray) -> float:
    """Area of a polygon (n, 2) by the shoelace formula: above 0 if it runs clockwise as seen, below if not."""
    x, y = points.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _evenly(points: np.ndarray) -> np.ndarray:
    """The closed polygon with points about STEP apart, smoothed a little."""
    closed = np.concatenate([points, points[:1]])
    along = np.concatenate([[0], np.cumsum(_lengths(np.diff(closed, axis=0)))])
    places = np.linspace(0, along[-1], max(8, round(along[-1] / STEP)), endpoint=False)
    points = np.stack([np.interp(places, along, axis) for axis in closed.T], axis=1)
    for _ in range(CALMED):
        points = (np.roll(points, 1, axis=0) + 2 * points + np.roll(points, -1, axis=0)) / 4
    return points


def _contour(points: np.ndarray, tolerance: float) -> Contour:
    """The evenly spaced closed polygon (n, 2) as lines and curves between its corners."""
    corners = _corners(points)
    points = _sharpened(points, corners)
    cuts = sorted(corners)
    if len(cuts) < 2:  # a round shape: cut it in two halves, which meet smoothly
        first = cuts[0] if cuts else int(points[:, 1].argmin())
        cuts = sorted({first, int(_lengths(points - points[first]).argmax())})
    first, count = cuts[0], len(points)
    points = np.roll(points, -first, axis=0)
    cuts = [cut - first for cut in cuts] + [count]
    sharp = {corner - first for corner in corners} | ({count} if first in corners else set())
    around = np.concatenate([points] * 3)  # [count:] with neighbours on both sides of every index
    segments: list[Segment] = []
    for start, end in itertools.pairwise(cuts):
        piece = around[count + start : count + end + 1]
        leave = None if start in sharp else _direction(around, count + start)
        arrive = None if end in sharp else -_direction(around, count + end)
        segments += _fit(piece, leave, arrive, tolerance)
    return Contour(_point(points[0]), tuple(segments))


def _corners(points: np.ndarray) -> set[int]:
    """Indices at which the direction turns the most around, and by TURN or more."""
    if len(points) * STEP < SMALL:
        return set()
    reach = min(round(REACH / STEP), len(points) // 4)
    before, after = points - np.roll(points, reach, axis=0), np.roll(points, -reach, axis=0) - points
    turn = np.abs(np.degrees(np.arctan2(_cross(before, after), (before * after).sum(axis=1))))
    most = np.max([np.roll(turn, shift) for shift in range(-reach, reach + 1)], axis=0)
    found: list[int] = []
    for i in np.flatnonzero((turn == most) & (turn >= TURN)).tolist():
        if not found or i - found[-1] > reach // 2:  # of equal turns side by side, the first
            found.append(i)
    return set(found)


def _sharpened(points: np.ndarray, corners: set[int]) -> np.ndarray:
    """The polygon with its corners moved to where the straight lines through their sides meet."""
    sharp, count = points.copy(), len(points)
    blunt, straight = round(BLUNT / STEP), round(STRAIGHT / STEP)
    for i in sorted(corners):
        left, right = points[(i - blunt) % count], points[(i + blunt) % count]
        along, back = left - points[(i - blunt - straight) % count], right - points[(i + blunt + straight) % count]
        across = _cross(along, back)
        if abs(across) < 0.3 * np.hypot(*along) * np.hypot(*back):  # nearly parallel: they meet far away
            continue
        reach = _cross(right - left, back) / across
        tip = left + reach * along
        if reach < 0 or np.hypot(*(tip - points[i])) > SHIFT:
            continue
        share = np.arange(blunt + 1)[:, None] / blunt
        sharp[np.arange(i - blunt, i + 1) % count] = left + share * (tip - left)
        sharp[np.arange(i + blunt, i - 1, -1) % count] = right + share * (tip - right)
    return sharp


# ---- curves through points: Schneider, "An Algorithm for Automatically Fitting Digitized Curves", Graphics Gems, 1990


def _fit(points: np.ndarray, leave: Direction, arrive: Direction, tolerance: float) -> list[Segment]:
    """Lines and curves through points (n, 2), with these unit directions inwards at both ends; splits where needed."""
    chord = points[-1] - points[0]
    length = np.hypot(*chord)
    if length > STEP and np.abs(_cross(points - points[0], chord)).max() < WAVER * tolerance * length:
        if all(end is None or abs(_cross(end, chord)) < KINK * length for end in (leave, arrive)):
            return [(_point(points[-1]),)]
    if len(points) < 4:
        return [(_point(point),) for point in points[1:]]
    curve, error, worst = _curve(points, leave, arrive, tolerance)
    if error < tolerance:
        return [tuple(_point(point) for point in curve[1:])]
    quarter = len(points) // 4  # a cut closer to an end would leave a scrap there
    cut = min(max(worst, quarter), len(points) - 1 - quarter)
    through = _direction(points, cut)
    return _fit(points[: cut + 1], leave, -through, tolerance) + _fit(points[cut:], through, arrive, tolerance)


def _curve(points: np.ndarray, leave: Direction, arrive: Direction, tolerance: float):
    """The best cubic found for points (n, 2): its points (4, 2), its largest error and where that is."""
    leave = _direction(points, 0) if leave is None else leave
    arrive = -_direction(points, len(points) - 1) if arrive is None else arrive
    along = np.concatenate([[0], np.cumsum(_lengths(np.diff(points, axis=0)))])
    u = along / along[-1]
    best = None
    for _ in range(5):
        curve = _least_squares(points, u, leave, arrive, along[-1])
        gap = _weights(u) @ curve - points
        errors = _lengths(gap)
        worst = int(errors.argmax())
        if best is None or errors[worst] < best[1]:
            best = curve, float(errors[worst]), worst
        if errors[worst] < tolerance or errors[worst] > 4 * tolerance:  # done, or beyond mending
            break
        u = _closer(u, curve, gap)
    return best


def _least_squares(points: np.ndarray, u: np.ndarray, leave: np.ndarray, arrive: np.ndarray, length: float):
    """The cubic (4, 2) with these end directions that is nearest to `points` at the parameters `u`."""
    weights = _weights(u)
    rest = points - weights[:, :2].sum(axis=1)[:, None] * points[0] - weights[:, 2:].sum(axis=1)[:, None] * points[-1]
    columns = np.stack([np.outer(weights[:, 1], leave).ravel(), np.outer(weights[:, 2], arrive).ravel()], axis=1)
    handles = np.linalg.lstsq(columns, rest.ravel(), rcond=None)[0]
    if not np.all((handles > 1e-3 * length) & (handles < length)):  # a loop or a cusp
        handles = np.full(2, length / 3)
    return np.stack([points[0], points[0] + handles[0] * leave, points[-1] + handles[1] * arrive, points[-1]])


def _closer(u: np.ndarray, curve: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """One Newton step of every parameter towards the point on the curve that is nearest to its point."""
    first, second = 3 * np.diff(curve, axis=0), 6 * np.diff(curve, n=2, axis=0)
    v = (1 - u)[:, None]
    w = u[:, None]
    speed = v**2 * first[0] + 2 * v * w * first[1] + w**2 * first[2]
    slope = (speed**2).sum(axis=1) + (gap * (v * second[0] + w * second[1])).sum(axis=1)
    step = np.divide((gap * speed).sum(axis=1), slope, out=np.zeros_like(u), where=np.abs(slope) > 1e-9)
    u = np.maximum.accumulate(np.clip(u - step, 0, 1))
    u[0], u[-1] = 0, 1
    return u


def _weights(u: np.ndarray) -> np.ndarray:
    """Bernstein polynomials of degree 3 at u (n,): (n, 4)."""
    v = 1 - u
    return np.stack([v**3, 3 * v * v * u, 3 * v * u * u, u**3], axis=1)


def _direction(points: np.ndarray, i: int) -> np.ndarray:
    """Unit direction of travel at points[i], from the points around."""
    reach = round(BLUNT / STEP)
    vector = points[min(len(points) - 1, i + reach)] - points[max(0, i - reach)]
    return vector / max(np.hypot(*vector), 1e-12)


def _cross(a: np.ndarray, b: np.ndarray) -> Any:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.hypot(vectors[:, 0], vectors[:, 1])


def _point(xy: np.ndarray) -> Point:
    return round(float(xy[0]), 3), round(float(xy[1]), 3)


# ---- SVG ------------------------------------------------------------------------------------------------------------


def _numbers(*points: Point) -> str:
    return " ".join(f"{value:.2f}".rstrip("0").rstrip(".") for point in points for value in point)


def _text(text: str) -> str:
    """Text that XML 1.0 may hold: control characters, which it may not, become the replacement character."""
    return escape("".join(_allowed(text)))


def _allowed(text: str) -> Iterator[str]:
    for character in text:
        code = ord(character)
        bad = (code < 32 and character not in "\t\n\r") or 0xD800 <= code <= 0xDFFF or code in (0xFFFE, 0xFFFF)
        yield "\ufffd" if bad else character
