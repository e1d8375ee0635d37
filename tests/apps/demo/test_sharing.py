"""Links that carry settings, files to keep, and the contrast of the page's colours."""

import base64
import io
import json
import re
from urllib.parse import parse_qsl

import numpy as np
import pytest
from PIL import Image

from ldm.apps.demo.downloads import MAX_SIDE, links, outline, png
from ldm.apps.demo.share_link import Settings, query, settings_of, settings_or_reason
from ldm.apps.demo.style import COLOURS, CSS, contrast
from ldm.pipelines.image_metadata import empty_job
from ldm.utils.errors import UserError

JOB = empty_job() | {"prompt": "a & b=“ü” #1", "seed": 7, "steps": 12, "guidance": 2.5, "sampler": "ddim"}


def test_a_link_gives_back_what_it_was_made_of():
    given = settings_of(dict(parse_qsl(query(JOB, 4))), ["own", "ddim"])
    assert given == Settings(prompt=JOB["prompt"], seed=7, number=4, steps=12, guidance=2.5, sampler="ddim")
    sized = query(JOB | {"height": 32, "width": 64, "negative": "red"}, 1)
    assert settings_of(dict(parse_qsl(sized)), ["ddim"]).width == 64
    plain = settings_of(dict(parse_qsl(query(JOB | {"prompt": None}, 1), keep_blank_values=True)), ["ddim"])
    assert plain.prompt == ""  # not the example that the page opens with
    assert "model" not in query(JOB | {"model": "/home/me/model"}, 1)  # where it lies is the host's business


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prompt", "x" * 301, "may have 300 letters"),
        ("prompt", "a\x00", "control characters"),
        ("seed", "-1", "seed must be a number from 0"),
        ("seed", "nan", "seed must be a number"),
        ("number", "17", "from 1 to 16"),
        ("steps", "1e9", "from 1 to 100"),
        ("steps", "2.5", "whole number"),
        ("guidance", "<script>", "got '<script>'"),
        ("sampler", "../../x", "sampler must be one of own"),
    ],
)
def test_a_link_may_ask_for_no_more_than_the_page(name, value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        settings_of({name: value}, ["own"])
    assert settings_or_reason({name: value}, ["own"])[0] == Settings()
    assert settings_or_reason({name: value}, ["own"])[1].startswith("This link cannot be used: ")


def test_what_a_link_does_not_say_stays_as_it_is():
    assert settings_of({"__theme": "dark", "model": "/etc"}, []) == Settings()


def test_a_png_is_enlarged_and_says_how_it_is_generated_again():
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    with Image.open(io.BytesIO(png(image, 4, JOB))) as large:
        assert large.size == (32, 32) and json.loads(large.text["ldm"]) | {"scale": 1} == json.loads(
            Image.open(io.BytesIO(png(image, 1, JOB))).text["ldm"]
        )
        assert json.loads(large.text["ldm"])["scale"] == 4
        assert (np.asarray(large)[::4, ::4] == np.asarray(image)).all()
    assert Image.open(io.BytesIO(png(image.resize((1024, 1024)), 16, JOB))).size == (MAX_SIDE, MAX_SIDE)


def test_an_outline_is_offered_for_grey_images_that_are_not_blank():
    pixels = np.full((32, 32), 255, np.uint8)
    blank = Image.fromarray(pixels.copy())
    pixels[8:24, 10:20] = 0
    bar = Image.fromarray(pixels)
    drawn = outline(bar, JOB)
    assert drawn is not None and b"<path" in drawn and outline(blank, JOB) is None
    found = links(bar, 2, JOB)
    (address,) = re.findall(r"image-7\.svg' href='data:image/svg\+xml;base64,([^']+)'", found)
    assert base64.b64decode(address) == drawn and "download='image-7.png'" in found
    assert "blank" in links(blank, 2, JOB) and "svg" not in links(bar.convert("RGB"), 2, JOB)


def test_every_text_of_the_page_can_be_read():
    assert contrast("#000000", "#ffffff") == 21 and round(contrast("#777777", "#ffffff"), 2) == 4.48
    assert {name: ratio for name, pair in COLOURS.items() if (ratio := contrast(*pair)) < 4.5} == {}
    assert all(colour in CSS for pair in COLOURS.values() for colour in pair if colour not in ("#ffffff", "#18181b"))
