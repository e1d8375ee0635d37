"""The numbers of `ldm evaluate` of a glyph model as one HTML page."""

from pathlib import Path

from ldm.evaluation.glyphs.in_words import lines
from ldm.evaluation.glyphs.verdict import bars
from ldm.evaluation.html import percent, render

PLOTS = {"loss": ("loss", "train_loss"), "gap": ("gap",), "share": ("judged/layout", "judged/radical")}


def report_page(metrics: dict, folder: Path) -> str:
    """The complete page; its images are the PNG files in `folder`."""
    said = lines(metrics["summary"])
    return render("glyphs/report.html.j2", folder, score=score, plots=plots, bars=bars(metrics), lines=said, **metrics)


def score(value: float | list[float] | None, measure: str) -> str:
    """A fraction as percent, a stroke count as it is; of an interval both ends."""
    if measure != "strokes_error" or value is None:
        return percent(value)
    return " to ".join(f"{each:.2f}" for each in (value if isinstance(value, list) else [value]))


def plots(curves: dict[str, list]) -> dict[str, dict[str, list]]:
    """The logged curves by the axes on which they are plotted."""
    grouped = {label: {name: curves[name] for name in names if name in curves} for label, names in PLOTS.items()}
    return {label: lines for label, lines in grouped.items() if lines}
