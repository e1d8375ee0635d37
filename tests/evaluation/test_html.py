"""The report's pieces: whole by themselves, and nothing in them is taken for markup."""

from html.parser import HTMLParser
from pathlib import Path

import jinja2
import numpy as np

from ldm.evaluation import html
from ldm.evaluation.verdict import share_bar
from ldm.utils.image_grid import save_png

VOID = {"meta", "img", "rect", "polyline", "html", "p"}


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


TEMPLATE = """
{% extends "report_base.html.j2" %}
{% from "report_macros.html.j2" import folded, note, picture, row, table, verdict %}
{% block title %}{{ name }}{% endblock %}
{% block body %}
{{ verdict(bars) }}
{{ note("<b>") }}
{% call folded("methods") %}{{ note("weights") }}{% endcall %}
{% call table(["a", "b"]) %}{{ row(["<script>", 0.5]) }}{{ row([none, 3]) }}{% endcall %}
<details><summary>more</summary>{{ picture("a.png", "it's <one>") }}</details>
{{ curves(lines, "step", "loss") | safe }}
{% endblock %}
"""


def test_a_page_is_well_formed_and_fetches_nothing(tmp_path, monkeypatch):
    from PIL import Image

    save_png(Image.fromarray(np.zeros((8, 8), np.uint8)), tmp_path / "a.png")
    files = jinja2.FileSystemLoader(Path(html.__file__).parent)
    loader = jinja2.ChoiceLoader([jinja2.DictLoader({"page": TEMPLATE}), files])
    monkeypatch.setattr(jinja2, "FileSystemLoader", lambda folder: loader)
    bar = share_bar("Layout?", "of <glyphs>", {"value": 0.5, "floor": 0.25, "ceiling": 1.5})
    lines = {"train": [(0, 1.0), (10, 0.5)], "validation": [(0, 1.0), (10, 0.7)]}
    text = html.render("page", tmp_path, name="T & T", lines=lines, bars=[bar])
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and len(checker.links) == 1 and checker.links[0].startswith("data:image/png;base64,")
    assert "<script" not in text and "<one>" not in text and "http" not in text
    assert [f"style='width:{width}%'" in text for width in ("25.0", "50.0", "100.0")] == [True] * 3
    assert "<summary>methods</summary>" in text and "Higher is better." in text and "<glyphs>" not in text
    assert "0.500" in text and "width=device-width" in text and "T &amp; T" in text


def test_numbers_become_text():
    assert html.percent(0.953) == "95.3%" and html.percent([0.1, 0.2]) == "10.0% to 20.0%" and html.percent(None) == ""
    assert html.plus_minus({"value": 0.12345, "error": 0.0123}) == "0.123 ± 0.012"
    assert html.plus_minus({"value": 821.4, "error": 17.0}, "fd") == "821.4 ± 17.0"
    assert html.plus_minus({"value": 0.12345, "error": None}, "mmd") == "0.1235"
    assert html.cell(0.5) == "0.500" and html.cell(3) == "3" and html.cell(None) == ""


def test_curves_begin_and_end_where_their_points_do():
    drawn = html.curves({"a": [(0, 0.0), (5, 1.0), (10, 0.5)]}, "x", "y")
    assert "points='60.0,276.0 380.0,16.0 700.0,146.0'" in drawn
    assert html.curves({"flat": [(0, 1.0), (1, 1.0)]}, "x", "y").count("polyline") == 1
