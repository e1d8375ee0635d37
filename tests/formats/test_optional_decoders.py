"""HEIC and SVG by the extra `formats`: read only where decoding is under limits, and an SVG reads no other file."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from ldm.formats import decode_workers as workers
from ldm.formats.decoding import ImageError, fit
from ldm.formats.image_arrays import decode_described, decode_image

HEAD = "<svg xmlns='http://www.w3.org/2000/svg' xmlns:x='http://www.w3.org/1999/xlink' viewBox='0 0 8 4'>"
CIRCLE = f"{HEAD}<circle cx='4' cy='2' r='1.5' fill='red'/></svg>".encode()


@pytest.fixture
def heic():
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    stream = io.BytesIO()
    Image.new("RGB", (80, 40), (200, 30, 30)).save(stream, "HEIF", quality=95)
    return stream.getvalue()


def test_a_heic_is_read(heic):
    pixels, about = decode_described(heic, extras=True)
    assert pixels.shape == (40, 80, 3) and about["format"] == "HEIF"
    assert np.abs(pixels.astype(int) - (200, 30, 30)).max() < 8
    with pytest.raises(ImageError, match="not an image in a known format"):
        decode_image(heic)


def test_an_svg_is_drawn_as_large_as_it_is_needed():
    pytest.importorskip("resvg_py")
    for enough, shape in ((96, (96, 192, 3)), (0, (512, 1024, 3))):
        pixels, about = decode_described(CIRCLE, enough=enough, extras=True)
        assert pixels.shape == shape and about["format"] == "SVG"
        assert pixels[shape[0] // 2, shape[1] // 2].tolist() == [255, 0, 0] and pixels[0, 0].tolist() == [255] * 3
    square = np.frombuffer(fit(CIRCLE, [(16, 16)], 3, "crop", 0)[1:], np.uint8).reshape(16, 16, 3)
    assert square[8, 8].tolist() == [255, 0, 0] and square[0, 0].tolist() == [0, 0, 0]
    with pytest.raises(ImageError, match="not an image in a known format"):
        decode_image(CIRCLE)


def svgs_of(path) -> dict[str, str]:
    """SVGs that would show the image at a path."""
    nested = base64.b64encode(f"{HEAD}<image href='{path}' width='8' height='4'/></svg>".encode()).decode()
    return {
        "plain": f"{HEAD}<image href='{path}' width='8' height='4'/></svg>",
        "xlink": f"{HEAD}<image x:href=' file://{path}' width='8' height='4'/></svg>",
        "filter": f"{HEAD}<filter id='f'><feImage href='{path}'/></filter><rect filter='url(#f)'/></svg>",
        "entity": f"<!DOCTYPE svg [<!ENTITY p '{path}'>]>{HEAD}<image href='&p;' width='8' height='4'/></svg>",
        "nested": f"{HEAD}<image href='data:image/svg+xml;base64,{nested}' width='8' height='4'/></svg>",
    }


@pytest.mark.parametrize("kind", svgs_of(""))
def test_an_svg_shows_no_other_file(kind, tmp_path):
    pytest.importorskip("resvg_py")
    Image.new("RGB", (8, 4), (255, 0, 0)).save(tmp_path / "secret.png")
    svg = svgs_of(tmp_path / "secret.png")[kind].encode()
    if kind == "nested":  # what is inside an image in an image is not drawn
        assert (decode_described(svg, enough=16, extras=True)[0] == 255).all()
    else:
        with pytest.raises(ImageError, match="the SVG names another file"):
            decode_described(svg, extras=True)


@pytest.mark.parametrize("svg", [b"<svg>", b"<?xml version='1.0'?><html/>", b"<svg xmlns='http://www.w3.org/2000/svg'"])
def test_what_is_no_svg_is_an_image_error(svg):
    pytest.importorskip("resvg_py")
    with pytest.raises(ImageError):
        decode_described(svg, extras=True)


def test_an_svg_that_crashes_its_decoder_costs_its_image_alone():
    pytest.importorskip("resvg_py")
    worker = workers.Worker("look", {})
    try:
        with pytest.raises(ImageError, match="crashes its decoder"):
            worker(b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 1 1000000'/>")
        assert b"SVG" in worker(CIRCLE)
    finally:
        worker.stop()
