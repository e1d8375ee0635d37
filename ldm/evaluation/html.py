"""A report as one HTML file from a jinja2 template: no script, nothing fetched, readable on a phone."""

import base64
from html import escape
from pathlib import Path
from typing import Any

import jinja2

DECIMALS = {"fd": 1, "mmd": 4}  # of distances between sets of images; all others have three


def render(template: str, folder: Path, **values: Any) -> str:
    """The page of a template beside this file; every value in it is escaped.

    Args:
        template: path from `ldm/evaluation`; it may use the filters `percent`, `cell` and `plus_minus`, the functions
            `curves` and `data_uri(name)` of a PNG in `folder`, and the macros in `report_macros.html.j2`.
        folder: where the report's images lie.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"percent": percent, "cell": cell, "plus_minus": plus_minus}
    environment.filters |= filters
    environment.globals |= {"curves": curves, "data_uri": lambda name: data_uri(folder / name)}
    return environment.get_template(template).render(**values)


def data_uri(path: Path) -> str:
    """A PNG file as a URI that carries it."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def percent(value: float | list[float] | None) -> str:
    """0.953 -> '95.3%', an interval -> '91.0% to 98.0%', None -> ''."""
    if isinstance(value, list):
        return " to ".join(map(percent, value))
    return "" if value is None else f"{100 * value:.1f}%"


def cell(value: Any) -> str:
    """A table cell's text: floats with three decimals, None empty."""
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def plus_minus(found: dict[str, float | None], measure: str = "") -> str:
    """{"value", "error"} -> '0.123 ± 0.010', with the decimals of the measure; without an error the value alone."""
    digits = DECIMALS.get(measure, 3)
    return " ± ".join(f"{each:.{digits}f}" for each in (found["value"], found["error"]) if each is not None)


def curves(series: dict[str, list[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Lines through (x, y) points as an SVG of its own, with the ends of both axes marked."""
    points = [p for line in series.values() for p in line]
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    wide, high, left, top = 640, 260, 60, 16

    def position(x: float, y: float) -> str:
        return f"{left + wide * (x - x0) / (x1 - x0 or 1):.1f},{top + high * (1 - (y - y0) / (y1 - y0 or 1)):.1f}"

    lines = []
    for i, (name, line) in enumerate(series.items()):
        colour = f"hsl({(210 + 137 * i) % 360} 70% 50%)"
        path = " ".join(position(x, y) for x, y in line)
        lines.append(f"<polyline points='{path}' fill=none stroke='{colour}' stroke-width=2 />")
        lines.append(f"<text x={left + wide + 10} y={top + 14 + 20 * i} fill='{colour}'>{escape(name)}</text>")
    marks = [
        (left, top + high + 18, "start", f"{x0:g}"), (left + wide, top + high + 18, "end", f"{x1:g}"),
        (left + wide / 2, top + high + 18, "middle", x_label), (left - 6, top + high, "end", f"{y0:.3g}"),
        (left - 6, top + 10, "end", f"{y1:.3g}"), (left - 6, top + high / 2, "end", y_label),
    ]  # fmt: skip
    texts = [f"<text x={x} y={y} text-anchor={a} fill=currentColor>{escape(t)}</text>" for x, y, a, t in marks]
    frame = f"<rect x={left} y={top} width={wide} height={high} fill=none stroke='#8888' />"
    size = f"viewBox='0 0 {left + wide + 180} {top + high + 30}' font-size=13"
    return f"<svg {size} width={left + wide + 180} role=img>{frame}{''.join(lines + texts)}</svg>"
