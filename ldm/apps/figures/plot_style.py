"""One quiet look for every figure: white ground, thin grey axes, few colours that the colour-blind tell apart."""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.apps.figures.figure import Drawing
from ldm.utils.atomic_files import atomic_write

WIDTH = 7.2  # inches: 1080 pixels
DPI = 150
LARGE = 180_000  # bytes: a PNG above this gets a palette
INK, GREY, PALE = "#222222", "#8a8a8a", "#d9d9d9"
# Okabe and Ito, Color Universal Design (2008)
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
PALETTE = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, INK)
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#f6d48b", "#e69f00", "#b23a00"])
SIGNED = LinearSegmentedColormap.from_list("signed", [BLUE, "#ffffff", RED])
DEPTH = LinearSegmentedColormap.from_list("depth", ["#ffffff", "#c6dbea", "#5b9bc6", "#0b3c5d"])

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "regular",
    "axes.labelsize": 8,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=PALETTE),
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def quiet() -> Iterator[None]:
    """Matplotlib in this style, and as it was afterwards."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}):
        yield


def page(rows: int = 1, columns: int = 1, height: float = 2.4, **options: Any) -> tuple[Figure, np.ndarray]:
    """A page `height` inches high and its axes, an array (rows, columns). `options` as for `Figure.subplots`."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def bare(axes: Axes) -> None:
    """No ticks and no frame: for images, and for embeddings whose axes mean nothing."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def grey(values: np.ndarray, low: float = 0, high: float = 255) -> np.ndarray:
    """Numbers (h, w) or (h, w, 3) from `low` to `high` as RGB (h, w, 3) from 0 to 1, black to white."""
    share = ((np.asarray(values, float) - low) / (high - low)).clip(0, 1)
    return np.repeat(share[..., None], 3, axis=2) if share.ndim == 2 else share


def strip(
    cells: Sequence[Sequence[np.ndarray | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    feet: Sequence[str] = (),
    scale: int = 2,
    left: int = 90,
    titles: Sequence[tuple[float, str]] = (),
) -> Figure:
    """Rows of images, every pixel shown as scale x scale, so that nothing is smoothed.

    Args:
        cells: RGB images (h, w, 3) from 0 to 1, all of one size; None = an empty cell.
        rows: a name to the left of each row.
        columns, feet: a name above and below each column.
        left: pixels of the page for the rows' names.
        titles: (column, text) above all, centred at that column's middle; fractions fall between.
    """
    height, width = next(cell.shape[:2] for row in cells for cell in row if cell is not None)
    pad = 3
    canvas = np.ones((len(cells) * (height + pad), len(cells[0]) * (width + pad), 3))
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            if cell is not None:
                top, side = i * (height + pad), j * (width + pad)
                canvas[top : top + height, side : side + width] = cell
    tall, wide = (n * scale for n in canvas.shape[:2])
    above, below = 26 * any(columns) + 34 * bool(titles), 8 + 22 * bool(feet)
    figure = Figure(figsize=((left + wide) / DPI, (above + tall + below) / DPI))
    place = (left / (left + wide), below / (above + tall + below), wide / (left + wide), tall / (above + tall + below))
    axes = figure.add_axes(place)
    axes.imshow(np.kron(canvas, np.ones((scale, scale, 1))), interpolation="none", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8, pad=3, labeltop=True, labelbottom=bool(feet))
    x, y = (
        ((np.arange(n) * (side + pad)) + side / 2) * scale for n, side in ((len(cells[0]), width), (len(cells), height))
    )
    axes.set_xticks(x, columns)
    axes.set_yticks(y, rows)
    if feet:
        axes.set_xticks(x, feet)
        top = axes.secondary_xaxis("top")
        top.set_xticks(x, columns)
        top.tick_params(length=0, labelsize=8, pad=3)
        top.spines[:].set_visible(False)
        axes.tick_params(labeltop=False)
    for column, text in titles:
        axes.text(
            (column * (width + pad) + width / 2) * scale,
            -8 - 24 * any(columns),
            text,
            ha="center",
            va="bottom",
            fontsize=9,
        )
    return figure


def contours(axes: Axes, points: np.ndarray, colour: str, levels: Sequence[float] = (0.25, 0.5, 0.75, 0.95)) -> None:
    """Contours of a kernel density estimate that hold these fractions of the points (n, 2)."""
    from scipy.stats import gaussian_kde

    density = gaussian_kde(points.T)
    heights = np.quantile(density(points.T), [1 - share for share in sorted(levels, reverse=True)])
    (left, bottom), (right, top) = points.min(0), points.max(0)
    pad_x, pad_y = 0.15 * (right - left), 0.15 * (top - bottom)
    x, y = np.meshgrid(np.linspace(left - pad_x, right + pad_x, 90), np.linspace(bottom - pad_y, top + pad_y, 90))
    values = density(np.stack([x.ravel(), y.ravel()])).reshape(x.shape)
    axes.contour(x, y, values, np.unique(heights), colors=[colour], linewidths=0.8)


def save(drawing: Drawing, folder: Path, name: str) -> list[Path]:
    """Write NAME.png, with the numbers in its metadata, and NAME.gif if there are frames."""
    info = PngInfo()
    info.add_itxt("Software", f"ldm figures {name}")
    info.add_itxt("numbers", json.dumps(drawing.numbers, ensure_ascii=False, default=float))
    paths = [folder / f"{name}.png"]
    atomic_write(paths[0], small(render(drawing.figure), info))
    if drawing.frames:
        first, *others = drawing.frames
        durations = [120] * len(others) + [1500]
        paths.append(folder / f"{name}.gif")
        film = {"save_all": True, "append_images": others, "duration": durations, "loop": 0, "optimize": True}
        atomic_write(paths[1], _bytes(first, "GIF", **film))
    return paths


def small(image: Image.Image, info: PngInfo) -> bytes:
    """A PNG, exact where that is small enough, else of few colours."""
    red, green, blue = image.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        image = red
    data = _bytes(image, "PNG", pnginfo=info, optimize=True)
    for colours in (256, 64, 24):
        if len(data) <= LARGE:
            break
        few = image.quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
        data = _bytes(few, "PNG", pnginfo=info, optimize=True)
    return data


def render(figure: Figure) -> Image.Image:
    """The page as an RGB image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return Image.open(buffer).convert("RGB")


def _bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()
