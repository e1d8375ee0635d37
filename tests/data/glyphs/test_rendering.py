import numpy as np
import pytest
from PIL import ImageFont

from ldm.data.glyphs import rendering as module
from ldm.data.glyphs.rendering import cached_glyphs, render, style_font
from ldm.utils.errors import UserError

pytest.importorskip("pylopdf_fonts_zh_cn", reason="needs the extra 'glyphs'")
SAMPLE = "\u6c34\u4e00\u570b\u9f98\u9b31\u53e3\u5c0f\u7c72"


@pytest.fixture
def latin_font(tmp_path):
    """A font without Chinese characters: the one inside Pillow."""
    path = tmp_path / "latin.ttf"
    path.write_bytes(ImageFont.load_default(20).font_bytes)
    return path


@pytest.mark.parametrize("style", ["hei", "song"])
@pytest.mark.parametrize("resolution", [32, 64, 160])
def test_glyphs_are_black_on_white_centred_and_whole(style, resolution):
    images, faults = render(style_font(style), SAMPLE, resolution)
    assert images.shape == (len(SAMPLE), resolution, resolution) and images.dtype == np.uint8
    assert not any(faults.values())
    rows, columns = (images.min(axis) < 128 for axis in ((0, 2), (0, 1)))  # where any of the glyphs has ink
    for ink in (np.flatnonzero(rows), np.flatnonzero(columns)):
        before, after = ink[0] / resolution, 1 - (ink[-1] + 1) / resolution
        assert 0.02 < before < 0.12 and 0.02 < after < 0.12
        assert abs(before - after) < 0.06
    assert images.max() == 255 and images.min() < 40


def test_edges_are_antialiased():
    images, _ = render(style_font("hei"), "\u4e49", 64)
    assert len(np.unique(images)) > 10


def test_a_horizontal_bar_lies_flat_and_unturned():
    images, _ = render(style_font("hei"), "\u4e00", 64)  # the character 'one': a single bar
    ink = images[0] < 128
    assert ink.any(0).sum() > 45 and ink.any(1).sum() < 8


def test_faults_are_found_by_pixels():
    text = "\u6c34\u3000\U0002ffff\u2e3b"  # water, a blank, a character no font has, a dash three squares wide
    _, faults = render(style_font("hei"), text, 32)
    assert faults == {"blank": [1], "missing": [2], "clipped": [3]}


def test_cache_holds_what_render_draws_and_lists_the_faults(tmp_path, caplog):
    text = SAMPLE + "\u3000"
    folder, bad = cached_glyphs(style_font("hei"), text, 32, tmp_path)
    np.testing.assert_array_equal(np.load(folder / "images.npy"), render(style_font("hei"), text, 32)[0])
    assert bad == [len(SAMPLE)]
    assert "1 of 9 glyphs skipped" in caplog.text
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # nothing staged is left


def test_a_second_call_reads_the_cache(tmp_path, monkeypatch):
    first = cached_glyphs(style_font("hei"), SAMPLE, 32, tmp_path)
    monkeypatch.setattr(module, "render", lambda *_: pytest.fail("rendered again"))
    assert cached_glyphs(style_font("hei"), SAMPLE, 32, tmp_path) == first


def test_font_size_and_characters_are_part_of_the_key(tmp_path):
    calls = [("hei", SAMPLE, 32), ("song", SAMPLE, 32), ("hei", SAMPLE[::-1], 32), ("hei", SAMPLE, 40)]
    folders = {cached_glyphs(style_font(style), text, size, tmp_path)[0] for style, text, size in calls}
    assert len(folders) == len(calls)


@pytest.mark.parametrize("damage", ["short", "gone", "faults"])
def test_a_damaged_cache_entry_is_rendered_again(tmp_path, damage):
    folder, _ = cached_glyphs(style_font("hei"), SAMPLE, 32, tmp_path)
    whole = (folder / "images.npy").read_bytes()
    if damage == "short":
        (folder / "images.npy").write_bytes(whole[: len(whole) // 2])
    else:
        (folder / ("images.npy" if damage == "gone" else "manifest")).unlink()
    again, _ = cached_glyphs(style_font("hei"), SAMPLE, 32, tmp_path)
    assert again == folder and (folder / "images.npy").read_bytes() == whole


def test_a_font_without_chinese_is_refused(latin_font, tmp_path):
    with pytest.raises(UserError, match=r"latin\.ttf.*choose"):
        cached_glyphs(latin_font, SAMPLE, 32, tmp_path / "cache")


def test_unreadable_fonts_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read the font"):
        cached_glyphs(tmp_path / "none.otf", SAMPLE, 32, tmp_path)
    (tmp_path / "text.otf").write_text("no font")
    with pytest.raises(UserError, match="cannot read the font"):
        cached_glyphs(tmp_path / "text.otf", SAMPLE, 32, tmp_path)


def test_an_unwritable_cache_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="data.cache_dir"):
        cached_glyphs(style_font("hei"), SAMPLE, 32, tmp_path / "file")


def test_missing_font_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pylopdf_fonts_zh_cn", None)
    with pytest.raises(UserError, match=r"pip install pylopdf-fonts-zh-cn==0\.1\.1"):
        style_font("hei")
