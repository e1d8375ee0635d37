"""Traced outlines: shapes whose area is known, drawn glyphs against their own pixels, and what an SVG may hold."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from filled import coverage, disc, filled, iou, ring, shape, square
from PIL import Image

pytest.importorskip("contourpy")
pytest.importorskip("fontTools")

from ldm.apps.font.vectorize import area, ink_of, svg, trace
from ldm.pipelines.model_folder import resolve_model
from ldm.pipelines.torch_free import open_torch_free

PROMPTS = [
    "horizontal stacked glyph",
    "enclosed glyph",
    "single glyph",
    "vertical stacked glyph with the water radical",
]
AREAS = {
    disc: math.pi * 20.3**2,
    ring: math.pi * (20.3**2 - 11.6**2),
    square: 4 * 18.2 * 12.6,
}


def tilted(x, y, degrees=27):
    turn = math.radians(degrees)
    x, y = x - 32, y - 32
    return np.maximum(abs(x * math.cos(turn) + y * math.sin(turn)), abs(y * math.cos(turn) - x * math.sin(turn))) < 15


def glyphs(model: str, count: int) -> np.ndarray:
    """uint8 (n, 128, 128): `count` of each prompt, as the model draws them by default."""
    folder = resolve_model(model)
    steps, scale = folder.defaults["num_inference_steps"], folder.defaults["guidance_scale"]
    prompts = [prompt for prompt in PROMPTS for _ in range(count)]
    return open_torch_free(folder).generate(prompts, [""] * len(prompts), steps, scale, (0, 1), seed=0)[..., 0]


@pytest.fixture(scope="module")
def drawn():
    return glyphs("glyphs-fast", 2)


def pen_area(outline) -> float:
    """As fontTools integrates the very curves; clockwise as seen is above 0 here, where y runs downwards."""
    from fontTools.pens.areaPen import AreaPen

    pen = AreaPen()
    outline.draw(pen)
    return pen.value


@pytest.mark.parametrize("inside", AREAS, ids=lambda inside: inside.__name__)
def test_a_shape_has_its_area_within_one_percent(inside):
    assert pen_area(trace(shape(inside))) == pytest.approx(AREAS[inside], rel=0.01)


@pytest.mark.parametrize("degrees", [0, 3, 27, 45])
def test_a_tilted_square_has_its_four_corners_for_nodes(degrees):
    outline = trace(shape(lambda x, y: tilted(x, y, degrees)))
    assert len(outline.contours) == 1 and outline.num_nodes == 4
    corners = np.array([segment[-1] for segment in outline.contours[0].segments]) - 32
    np.testing.assert_allclose(np.hypot(*corners.T), 15 * math.sqrt(2), atol=0.25)


@pytest.mark.parametrize("degrees", [9, 15, 20])
def test_a_staircase_of_pixels_does_not_change_the_area(degrees):
    assert pen_area(trace(shape(lambda x, y: tilted(x, y, degrees)))) == pytest.approx(900, rel=0.01)


def test_a_disc_is_a_few_smooth_curves_at_its_radius():
    outline = trace(shape(disc))
    assert len(outline.contours) == 1 and outline.num_nodes <= 12
    points = outline.polygons()[0]
    np.testing.assert_allclose(np.hypot(*(points - [31.7, 32.4]).T), 20.3, atol=0.15)
    segments = outline.contours[0].segments
    for (*_, before, node), (after, *_) in zip(segments, [*segments[1:], segments[0]], strict=True):
        arrive, leave = np.subtract(node, before), np.subtract(after, node)  # the handles at a node lie on one line
        assert arrive @ leave / np.hypot(*arrive) / np.hypot(*leave) > 0.999


def test_a_hole_runs_the_other_way():
    areas = [area(polygon) for polygon in trace(shape(ring)).polygons()]
    assert sorted(round(each / abs(each)) for each in areas) == [-1, 1]
    assert max(areas) == pytest.approx(math.pi * 20.3**2, rel=0.01)
    assert min(areas) == pytest.approx(-math.pi * 11.6**2, rel=0.01)


def test_colours_do_not_matter():
    grey = np.asarray(shape(ring), np.float32) / 255
    expected = trace(shape(ring)).path()
    for ink, ground in (((255, 255, 255), (0, 0, 0)), ((0, 0, 255), (0, 0, 0)), ((200, 30, 30), (20, 200, 90))):
        coloured = np.array(ink) + grey[..., None] * (np.array(ground) - ink)
        found = trace(coloured.round().astype(np.uint8))
        assert iou(filled(found, 4), filled(trace(shape(ring)), 4)) > 0.99
    assert trace(Image.fromarray(255 - np.asarray(shape(ring)))).path() == expected


@pytest.mark.parametrize("colour", [0, 255])
def test_of_transparent_images_the_shape_is_what_is_opaque(colour):
    pixels = np.full((64, 64, 4), colour, np.uint8)
    pixels[..., 3] = 255 - np.asarray(shape(square))
    assert trace(pixels).contours == trace(pixels[..., 3]).contours != ()


def test_a_shape_may_touch_the_edge():
    outline = trace(shape(lambda x, y: (x < 20.5) & (abs(y - 30) < 9)))
    assert pen_area(outline) == pytest.approx(20.5 * 18, rel=0.01)


def test_a_moved_picture_has_a_moved_outline(drawn):
    first = trace(drawn[0])
    wider = np.pad(drawn[0], ((3, 0), (5, 0)), constant_values=drawn[0][0, 0])
    moved = coverage(trace(wider))  # by what is covered: where a closed curve begins, and so its nodes, may differ
    centre, before = (np.argwhere(each >= 0.5).mean(0) for each in (moved, coverage(first)))
    np.testing.assert_allclose(centre, before + [3, 5], atol=0.1)
    assert not moved[:3].any() and not moved[:, :5].any() and iou(moved[3:, 5:] >= 0.5, coverage(first) >= 0.5) >= 0.99


def matches(picture: np.ndarray) -> float:
    """IoU of the picture's pixels darker than the middle, and those that the outline covers by half or more."""
    return iou(coverage(trace(picture)) >= 0.5, ink_of(picture) >= 0.5)


def test_outlines_of_drawn_glyphs_match_their_pixels(drawn):
    assert min(matches(picture) for picture in drawn) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("model", ["glyphs-fast", "glyphs"])
def test_outlines_of_many_drawn_glyphs_match_their_pixels(model):
    found = [matches(picture) for picture in glyphs(model, 32)]
    print(f"{model}: IoU {np.mean(found):.4f} on average, {min(found):.4f} at least, of {len(found)}")
    assert min(found) >= 0.95


def test_more_tolerance_makes_fewer_nodes(drawn):
    nodes = [sum(trace(picture, tolerance).num_nodes for picture in drawn[:3]) for tolerance in (0.05, 0.1, 0.4)]
    assert nodes[0] > 1.5 * nodes[1] > 1.5 * 1.2 * nodes[2]


def test_a_picture_always_has_the_same_outline(drawn):
    assert trace(drawn[1]) == trace(drawn[1]) == trace(Image.fromarray(drawn[1]))


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_picture_has_no_outline(level):
    noise = np.random.default_rng(0).integers(0, 20, (64, 64))
    outline = trace(np.clip(level + noise - 10, 0, 255).astype(np.uint8))
    assert outline.contours == () and outline.num_nodes == 0 and "<path" not in outline.svg()


def test_specks_and_pinholes_are_left_out():
    pixels = np.asarray(shape(square)).copy()
    pixels[5, 5], pixels[33, 30] = 0, 255
    assert len(trace(pixels).contours) == 1


def test_wrong_pictures_and_tolerances_are_refused():
    with pytest.raises(ValueError, match=r"uint8 \(H, W\).*got float64 \(8, 8\)"):
        trace(np.zeros((8, 8)))
    with pytest.raises(ValueError, match=r"got uint8 \(8, 8, 5\)"):
        trace(np.zeros((8, 8, 5), np.uint8))
    for tolerance in (0, -1, math.nan):
        with pytest.raises(ValueError, match="tolerance must be"):
            trace(np.zeros((8, 8), np.uint8), tolerance)


# ---- SVG ------------------------------------------------------------------------------------------------------------


def test_an_svg_holds_the_outline_and_nothing_that_runs(drawn):
    hostile = "</title><script>alert(1)</script> & \x00\ud800"
    text = trace(drawn[0]).svg(hostile, hostile)
    root = ElementTree.fromstring(text.encode())
    assert [child.tag.split("}")[1] for child in root] == ["title", "desc", "path"]
    assert root.attrib["viewBox"] == "0 0 128 128"
    assert root[0].text == root[1].text == "</title><script>alert(1)</script> & \ufffd\ufffd"
    assert set(root[2].attrib) == {"fill-rule", "d"} and not re.search(r"<script|on\w+=|href", text)


def test_another_reader_of_svg_finds_the_same_curves(drawn):
    from fontTools.pens.areaPen import AreaPen
    from fontTools.pens.boundsPen import BoundsPen
    from fontTools.svgLib.path import SVGPath

    outline = trace(drawn[2])
    found, bounds, expected = AreaPen(), BoundsPen(None), BoundsPen(None)
    for pen in (found, bounds):
        SVGPath.fromstring(outline.svg().encode()).draw(pen)
    outline.draw(expected)
    assert found.value == pytest.approx(pen_area(outline), rel=1e-3)
    np.testing.assert_allclose(bounds.bounds, expected.bounds, atol=0.01)


def test_a_sheet_has_a_path_for_each_picture_in_its_place(drawn):
    outlines = [trace(picture) for picture in drawn[:3]]
    blank = replace(outlines[0], contours=())
    root = ElementTree.fromstring(svg([*outlines[:2], blank, outlines[2]], 2))
    assert root.attrib["viewBox"] == "0 0 256 256"
    assert [path.attrib.get("transform") for path in root] == [None, "translate(128 0)", "translate(128 128)"]
    assert root[2].attrib["d"] == outlines[2].path()
