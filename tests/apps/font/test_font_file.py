"""`ldm font`: what the prompts file may say, and a font that fontTools, FreeType, fontconfig and a browser read."""

import argparse
import base64
import io
import os
import shutil
import subprocess

import numpy as np
import pytest
from filled import disc, filled, iou, ring, shape, square
from page_checks import chromium
from PIL import Image, ImageDraw, ImageFont
from tiny_model import tiny_folder

pytest.importorskip("contourpy")
pytest.importorskip("fontTools")

from fontTools.pens.areaPen import AreaPen
from fontTools.ttLib import TTFont

from ldm.apps.font.font_file import build_font
from ldm.apps.font.vectorize import Outline, trace
from ldm.cli import font as font_cli
from ldm.cli import main as cli
from ldm.cli.font import Line, read_prompts
from ldm.pipelines.generation import generate_with
from ldm.pipelines.image_metadata import complete, empty_job
from ldm.pipelines.model_folder import resolve_model
from ldm.pipelines.torch_free import open_torch_free
from ldm.utils.errors import UserError

SIZE = 400  # pixels per em at which characters are compared; the baseline lies on a whole one, at 352


@pytest.fixture(scope="module")
def outlines() -> dict[int, Outline]:
    """Shapes, two drawn glyphs and a blank one; a code point beyond 16 bits among them."""
    light = open_torch_free(resolve_model("glyphs-fast"))
    drawn = light.generate(["enclosed glyph", "horizontal stacked glyph"], [""] * 2, 4, 1.0, (0, 1), seed=4)
    found = {0x41: shape(ring), 0x6C34: drawn[0], 0xE000: drawn[1], 0xE001: shape(square), 0x1F600: shape(disc)}
    return {code: trace(picture) for code, picture in found.items()} | {0xE002: Outline(64, 64, ())}


@pytest.fixture(scope="module", params=[".ttf", ".otf"])
def font(request, outlines) -> bytes:
    return saved(build_font(outlines, "Drawn & Read", request.param, "from words", "terms"))


def saved(font: TTFont) -> bytes:
    file = io.BytesIO()
    font.save(file)
    return file.getvalue()


def opened(data: bytes) -> TTFont:
    return TTFont(io.BytesIO(data), checkChecksums=2)


# ---- the font -------------------------------------------------------------------------------------------------------


def test_the_tables_say_what_fonts_of_chinese_say(font, outlines):
    read = opened(font)
    assert read.getBestCmap().keys() == {0x20} | outlines.keys()
    assert read["head"].unitsPerEm == 1000
    assert {read["hmtx"][name][0] for name in read.getGlyphOrder() if name != "space"} == {1000}
    assert read["hmtx"]["space"] == (500, 0)
    assert {advance for advance, _ in read["vmtx"].metrics.values()} == {1000}
    hhea, os2 = read["hhea"], read["OS/2"]
    assert (hhea.ascent, hhea.descent, hhea.lineGap) == (880, -120, 0)
    assert (os2.sTypoAscender, os2.sTypoDescender, os2.sTypoLineGap) == (880, -120, 0)
    assert (os2.usWinAscent, os2.usWinDescent, os2.fsType) == (880, 120, 0)
    names = {record.nameID: record.toUnicode() for record in read["name"].names}
    assert names[1] == names[4] == "Drawn & Read" and names[2] == "Regular" and names[5] == "Version 1.000"
    assert (names[6], names[10], names[13]) == ("DrawnRead-Regular", "from words", "terms")
    assert read["post"].formatType in (2.0, 3.0) and "space" in read.getGlyphOrder()


def test_bearings_are_those_of_the_outlines(font):
    from fontTools.pens.boundsPen import BoundsPen, ControlBoundsPen

    read = opened(font)
    glyphs = read.getGlyphSet()
    for name in read.getGlyphOrder():
        pen = ControlBoundsPen(glyphs) if "glyf" in read else BoundsPen(glyphs)
        glyphs[name].draw(pen)
        left, _, _, top = pen.bounds or (0, 0, 0, 0)
        assert abs(read["hmtx"][name][1] - left) <= 1, name
        assert abs(read["vmtx"][name][1] - (880 - top)) <= 1, name


def test_outer_contours_run_as_their_format_wants(font):
    read = opened(font)
    pen = AreaPen()
    read.getGlyphSet()["uniE001"].draw(pen)
    clockwise = pen.value < 0  # y runs upwards here
    assert clockwise == ("glyf" in read)
    assert abs(pen.value) == pytest.approx(4 * 18.2 * 12.6 * (1000 / 64) ** 2, rel=0.01)


def test_it_survives_the_way_through_xml(font, tmp_path):
    first, again = opened(font), TTFont()
    first.saveXML(tmp_path / "a.ttx")
    again.importXML(tmp_path / "a.ttx")
    again.recalcTimestamp = False
    read = opened(saved(again))
    assert read.getBestCmap() == first.getBestCmap()
    for name in read.getGlyphOrder():
        areas = []
        for each in (first, read):
            pen = AreaPen()
            each.getGlyphSet()[name].draw(pen)
            areas.append(pen.value)
        assert areas[0] == areas[1], name


def test_the_same_outlines_give_the_same_bytes(outlines):
    for kind in (".ttf", ".otf"):
        assert saved(build_font(outlines, "A", kind)) == saved(build_font(dict(reversed(outlines.items())), "A", kind))


def test_a_name_without_latin_letters_has_a_postscript_name_all_the_same(outlines):
    names = {r.nameID: r.toUnicode() for r in opened(saved(build_font(outlines, "水字")))["name"].names}
    assert (names[1], names[6]) == ("水字", "Drawn-Regular") and 13 not in names


FAMILIES = {
    "Caf\u00e9 Na\u00efve": "Cafe Naive",
    "\u6c34 \u5b57\u4f53": "Drawn",
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac": "Drawn",
    "\u017b\u00f3\u0142w": "Zow",
    "\U0001f600 Emoji 2": "Emoji 2",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [".ttf", ".otf"])
def test_a_family_may_be_of_any_script(family, kind):
    """PostScript's names are ASCII, those of the name table Unicode."""
    font = opened(saved(build_font({0x41: trace(shape(square))}, family, kind)))
    names = {name.nameID: name.toUnicode() for name in font["name"].names}
    assert (names[1], names[4]) == (family, family)
    assert names[6] == FAMILIES[family].replace(" ", "") + "-Regular"
    if kind == ".otf":
        top = font["CFF "].cff.topDictIndex[0]
        assert (top.FamilyName, top.FullName) == (FAMILIES[family], FAMILIES[family])


def test_a_font_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    """A file whose name is no text, and whatever fontTools does not take."""
    (tmp_path / "p.txt").write_text("a\n")
    monkeypatch.setattr(font_cli, "generate_with", lambda *args, **options: pytest.fail("it was drawn before"))
    for words in ([tmp_path / "caf\udce9.otf"], [tmp_path / "x.otf", "--name", "a\nb"]):
        with pytest.raises(UserError, match=r"--name.* a name that can be printed"):
            run_font("font", tmp_path / "p.txt", "-o", *words)

    def broken(*args):
        raise ValueError("no such table")

    monkeypatch.setattr(font_cli, "build_font", broken)
    with pytest.raises(UserError, match=r"no .otf font can be named 'x': no such table; give another --name"):
        run_font("font", tmp_path / "p.txt", "-o", tmp_path / "x.otf")


def run_font(*words):
    argv = [str(word) for word in words]
    args = cli.build_parser(argv).parse_args(argv)
    return args.run(args)


def test_a_font_of_nothing_is_refused(outlines):
    for wrong in (({}, "A"), (outlines, " "), (outlines, "A", ".woff")):
        with pytest.raises(ValueError, match="a font needs outlines"):
            build_font(*wrong)


def test_freetype_draws_each_character_as_it_was_traced(font, outlines):
    face = ImageFont.truetype(io.BytesIO(font), SIZE, layout_engine=ImageFont.Layout.BASIC)
    for code, outline in outlines.items():
        page = Image.new("L", (SIZE, SIZE))
        ImageDraw.Draw(page).text((0, 352), chr(code), fill=255, font=face, anchor="ls")
        ink = np.asarray(page) >= 128
        if outline.contours:
            assert iou(ink, filled(outline, SIZE / outline.width)) > 0.95, hex(code)
        else:
            assert not ink.any()


# ---- where it is used -----------------------------------------------------------------------------------------------


def install(font: bytes, home) -> dict[str, str]:
    """Put the font where a user's fonts lie; the environment of programs that are to see it there."""
    if shutil.which("fc-cache") is None or shutil.which("fc-match") is None:
        pytest.skip("no fontconfig is installed")
    place = home / "share" / "fonts"
    place.mkdir(parents=True)
    (place / "drawn.font").write_bytes(font)
    environment = os.environ | {"XDG_DATA_HOME": str(home / "share"), "XDG_CACHE_HOME": str(home / "cache")}
    subprocess.run(["fc-cache", str(place)], env=environment, check=True, timeout=600)
    return environment


def test_it_installs_and_is_found_by_its_name_and_its_characters(font, tmp_path):
    environment = install(font, tmp_path)
    for pattern in ("Drawn & Read", ":charset=e001:family=Drawn & Read"):
        command = ["fc-match", "-f", "%{family}|%{style}|%{file}|%{scalable}", pattern]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600).stdout
        assert said == f"Drawn & Read|Regular|{tmp_path}/share/fonts/drawn.font|True"


def test_a_browser_draws_each_character_as_it_was_traced(font, outlines, tmp_path):
    """In the first row by @font-face, in the second by the name of the installed font."""
    program, environment = chromium(), install(font, tmp_path)
    text = "".join(f"&#{code};" for code in outlines)
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><meta charset=utf-8><style>@font-face { font-family: web; "
        f"src: url(data:font/ttf;base64,{base64.b64encode(font).decode()}) }}"
        f"body {{ margin: 0 }} div {{ font-size: {SIZE}px; line-height: 1; white-space: nowrap }}</style>"
        f"<div style='font-family: web'>{text}</div><div style='font-family: \"Drawn & Read\"'>{text}</div>",
        encoding="utf-8",
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += [
        f"--user-data-dir={tmp_path}/user",
        f"--window-size={SIZE * len(outlines)},{3 * SIZE}",
        "--hide-scrollbars",
    ]
    options += ["--force-device-scale-factor=1", f"--screenshot={tmp_path}/page.png"]
    command = [program, *options, page.as_uri()]
    subprocess.run(command, env=environment, capture_output=True, check=True, timeout=600)
    with Image.open(tmp_path / "page.png") as picture:
        ink = np.asarray(picture.convert("L")) < 128
    for row in (0, 1):
        for column, outline in enumerate(outlines.values()):
            cell = ink[row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE]
            if outline.contours:
                assert iou(cell, filled(outline, SIZE / outline.width)) > 0.95, (row, column)
            else:
                assert not cell.any()


# ---- the prompts file -----------------------------------------------------------------------------------------------


def written(tmp_path, content: str | bytes):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_lines_get_their_own_characters_or_private_ones(tmp_path):
    content = "\ufeff# a comment\r\nfirst\r\n\r\nsecond\t水\nthird\tU+E000\nfourth\tu+1f600 \nfifth\t\n  sixth"
    assert read_prompts(written(tmp_path, content)) == [
        Line(2, "first", 0xE001),  # U+E000 is taken by the third
        Line(4, "second", 0x6C34),
        Line(5, "third", 0xE000),
        Line(6, "fourth", 0x1F600),
        Line(7, "fifth", 0xE002),
        Line(8, "sixth", 0xE003),
    ]


def test_the_private_use_area_may_be_filled_and_not_more(tmp_path):
    lines = read_prompts(written(tmp_path, "glyph\n" * 6400))
    assert (lines[0].code, lines[-1].code) == (0xE000, 0xF8FF)
    with pytest.raises(UserError, match="6401 lines.*room for 6400"):
        read_prompts(written(tmp_path, "glyph\n" * 6401))
    with pytest.raises(UserError, match="6400 lines.*room for 6399"):
        read_prompts(written(tmp_path, "glyph\tU+E000\n" + "glyph\n" * 6400))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompts"),
        ("# nothing\n \n\t\n", "holds no prompts"),
        (b"gl\xffph", r"is not UTF-8 text \(byte 2\)"),
        ("a\tx\nb\ty\nc\tU+0078", "line 3: U\\+0078 is already line 1"),
        ("a\txy", "line 1: after the tab one character.*got 'xy'"),
        ("a\tU+D800", "got 'U\\+D800'"),
        ("a\tU+110000", "got 'U\\+110000'"),
        ("a\tU+FFFE", "got 'U\\+FFFE'"),
        ("a\tU+0007", "got 'U\\+0007'"),
        ("ok\n\tx", "line 2: no prompt before the tab"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_prompts(written(tmp_path, content))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read .*none.txt"):
        read_prompts(tmp_path / "none.txt")


# ---- the command ----------------------------------------------------------------------------------------------------


def call(*argv) -> int:
    parser = argparse.ArgumentParser()
    font_cli.add_parser(parser.add_subparsers())
    args = parser.parse_args(["font", *map(str, argv)])
    return args.run(args) if hasattr(args, "run") else font_cli.run(args)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("font") / "model")


def test_a_file_becomes_a_font_a_table_and_a_proof(tmp_path, capsys):
    prompts = written(tmp_path, "enclosed glyph\nhorizontal stacked glyph\t水\nsingle glyph\n")
    for name in ("a.ttf", "b.ttf"):
        argv = (prompts, "-m", "glyphs-fast", "-o", tmp_path / name, "--name", "Mine", "--seed", 3)
        assert call(*argv, "--proof", tmp_path / "proof.png") == 0
    assert (tmp_path / "a.ttf").read_bytes() == (tmp_path / "b.ttf").read_bytes()
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == [
        "U+E000\t\ue000\tenclosed glyph",
        "U+6C34\t水\thorizontal stacked glyph",
        "U+E001\t\ue001\tsingle glyph",
    ]
    assert out[3].startswith(f"{tmp_path}/a.ttf: Mine, 3 characters of ")
    names = {r.nameID: r.toUnicode() for r in opened((tmp_path / "a.ttf").read_bytes())["name"].names}
    assert names[13] == "The card of the model glyphs-fast names the licence apache-2.0."
    with Image.open(tmp_path / "proof.png") as picture:
        assert picture.width >= 3 * 64 and picture.convert("L").getextrema()[0] < 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ttf", "b.ttf", "prompts.txt", "proof.png"]


def test_line_i_is_what_generate_draws_from_seed_plus_i(tmp_path, tiny):
    argv = ["generate", "fire", "-m", str(tiny), "--seed", "6", "--steps", "2", "-o", str(tmp_path / "a.png")]
    with pytest.raises(SystemExit, match="0"):
        cli.main(argv)
    folder, job = resolve_model(tiny), empty_job() | {"prompt": ["water", "fire"], "seed": 5, "steps": 2}
    complete(job, folder.defaults)
    drawn = [np.asarray(image).astype(int) for image in generate_with(folder, job)]
    with Image.open(tmp_path / "a.png") as picture:
        assert abs(drawn[1] - np.asarray(picture)).max() <= 1  # a grey level: another batch


def test_blank_pictures_are_empty_characters_with_a_note(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(font_cli, "generate_with", lambda *_, device: np.full((2, 16, 16), 255, np.uint8))
    assert call(written(tmp_path, "a\nb\n"), "-o", tmp_path / "a.otf", "--proof", tmp_path / "p.png") == 0
    assert "note: 2 images were blank, so these are empty: U+E000 U+E001" in capsys.readouterr().err


def test_a_model_that_takes_the_pipeline_makes_a_font_too(tmp_path, tiny):
    assert call(written(tmp_path, "water\n"), "-m", tiny, "-o", tmp_path / "a.ttf", "--steps", 2) == 0
    assert 0xE000 in opened((tmp_path / "a.ttf").read_bytes()).getBestCmap()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("-o", "a.woff"), "--output must end in .ttf or .otf, got 'a.woff'"),
        (("-o", "prompts.txt/a.ttf"), "--output prompts.txt/a.ttf cannot be written"),
        (("-o", "a.ttf", "--proof", "a.html"), "--proof must end in .png"),
        (("-o", "a.ttf", "--steps", "0"), "--steps must be a whole number from 1 to 1000, got 0"),
        (("-o", "a.ttf", "--seed", "-1"), "--seed must be"),
        (("-o", "a.ttf", "--guidance", "nan"), "--guidance must be 0 or more"),
        (("-o", "a.ttf", "--name", " "), "--name must be a name"),
        (("-o", "a.ttf", "-m", "no/such/model"), "there is no folder no/such/model"),
    ],
)
def test_wrong_arguments_end_in_one_line_before_the_work(tmp_path, argv, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(font_cli, "generate_with", None)
    with pytest.raises(UserError, match=message):
        call(written(tmp_path, "a\n"), *argv)
