"""Pieces of a report that is one HTML file: no script, nothing fetched, readable on a phone."""

import base64
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 72rem; padding: 0 1rem }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .5rem 0 1.5rem }
td, th { padding: .2rem .7rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
th { border-bottom: 2px solid #888 } td { border-bottom: 1px solid #8884 }
td:first-child, th:first-child { text-align: left; white-space: normal }
img { max-width: 100%; height: auto; image-rendering: pixelated; border: 1px solid #8888 }
figure { margin: 1.5rem 0 } figcaption { margin-bottom: .3rem } svg { max-width: 100%; height: auto }
summary { cursor: pointer; font-size: 1.2rem; margin: 1rem 0 } .note { opacity: .75; max-width: 46rem }
"""


def page(title: str, parts: list[str]) -> str:
    """A whole page of ready parts."""
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>"
    )
    return "\n".join([head, *parts]) + "\n"


def note(text: str) -> str:
    return f"<p class=note>{escape(text)}</p>"


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def table(heads: list[str], rows: list[list]) -> str:
    """A table that scrolls sideways where the screen is too narrow; numbers and text are escaped."""
    body = "".join(f"<tr>{_cells(row, 'td')}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{_cells(heads, 'th')}</tr>{body}</table></div>"


def folded(title: str, parts: list[str]) -> str:
    """Parts that are shown when the title is tapped."""
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>"


def picture(path: Path, caption: str) -> str:
    """A PNG, carried in the page itself."""
    data = base64.b64encode(path.read_bytes()).decode()
    text = escape(caption)
    return f"<figure><figcaption>{text}</figcaption><img alt='{text}' src='data:image/png;base64,{data}'></figure>"


def curves(series: dict[str, list[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Lines through (x, y) points as an SVG of its own, with the ends of both axes marked."""
    points = [p for line in series.values() for p in line]
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    wide, high, left, top = 640, 260, 60, 16

    def place(x: float, y: float) -> str:
        return f"{left + wide * (x - x0) / (x1 - x0 or 1):.1f},{top + high * (1 - (y - y0) / (y1 - y0 or 1)):.1f}"

    drawn = []
    for i, (name, line) in enumerate(series.items()):
        colour = f"hsl({(210 + 137 * i) % 360} 70% 50%)"
        path = " ".join(place(x, y) for x, y in line)
        drawn.append(f"<polyline points='{path}' fill=none stroke='{colour}' stroke-width=2 />")
        drawn.append(f"<text x={left + wide + 10} y={top + 14 + 20 * i} fill='{colour}'>{escape(name)}</text>")
    marks = [
        (left, top + high + 18, "start", f"{x0:g}"), (left + wide, top + high + 18, "end", f"{x1:g}"),
        (left + wide / 2, top + high + 18, "middle", x_label), (left - 6, top + high, "end", f"{y0:.3g}"),
        (left - 6, top + 10, "end", f"{y1:.3g}"), (left - 6, top + high / 2, "end", y_label),
    ]  # fmt: skip
    texts = [f"<text x={x} y={y} text-anchor={a} fill=currentColor>{escape(t)}</text>" for x, y, a, t in marks]
    frame = f"<rect x={left} y={top} width={wide} height={high} fill=none stroke='#8888' />"
    size = f"viewBox='0 0 {left + wide + 180} {top + high + 30}' font-size=13"
    return f"<svg {size} width={left + wide + 180} role=img>{frame}{''.join(drawn + texts)}</svg>"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def _cells(values: list, tag: str) -> str:
    return "".join(f"<{tag}>{escape(_text(value))}</{tag}>" for value in values)


def _text(value) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
