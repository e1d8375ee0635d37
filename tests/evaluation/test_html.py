"""The report's pieces: whole by themselves, and nothing in them is taken for markup."""

from html.parser import HTMLParser

import numpy as np

from ldm.evaluation import html
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


def test_a_page_is_well_formed_and_fetches_nothing(tmp_path):
    from PIL import Image

    save_png(Image.fromarray(np.zeros((8, 8), np.uint8)), tmp_path / "a.png")
    parts = [
        html.heading("<b>"),
        html.table(["a", "b"], [["<script>", 0.5], [None, 3]]),
        html.folded("more", [html.picture(tmp_path / "a.png", "it's <one>")]),
        html.curves({"train": [(0, 1.0), (10, 0.5)], "validation": [(0, 1.0), (10, 0.7)]}, "step", "loss"),
    ]
    text = html.page("T & T", parts)
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and len(checker.links) == 1 and checker.links[0].startswith("data:image/png;base64,")
    assert "<script" not in text and "http" not in text and "0.500" in text and "width=device-width" in text


def test_curves_begin_and_end_where_their_points_do():
    drawn = html.curves({"a": [(0, 0.0), (5, 1.0), (10, 0.5)]}, "x", "y")
    assert "points='60.0,276.0 380.0,16.0 700.0,146.0'" in drawn
    assert html.curves({"flat": [(0, 1.0), (1, 1.0)]}, "x", "y").count("polyline") == 1
