"""`ldm data check` counts what was put into a folder, leaves it as it was, and says so by its exit code."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm.cli.main import build_parser
from ldm.utils.errors import UserError


def check(*words) -> int:
    argv = ["data", "check", *map(str, words)]
    args = build_parser(argv).parse_args(argv)
    return args.run(args)


def noise(seed: int, size=(80, 80), mode="RGB") -> Image.Image:
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


@pytest.fixture
def root(tmp_path):
    """Six good pictures, each odd in its own way, and two bad ones."""
    folder = tmp_path / "mine"
    folder.mkdir()
    noise(0).save(folder / "a.png")
    noise(0).save(folder / "same.bmp")
    noise(1, (20, 90)).save(folder / "thin.png")
    noise(2, (64, 64), "L").save(folder / "grey.png")
    Image.new("RGBA", (70, 70), (0, 0, 0, 0)).save(folder / "blank.png")
    noise(3, (100, 70)).convert("CMYK").save(folder / "print.tif")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:500])
    (folder / "text.jpg").write_text("hello")
    for name, words in (("a", "a red cat"), ("same", "a blue dog"), ("thin", "a red cat"), ("grey", " \n")):
        (folder / f"{name}.txt").write_text(words)
    return folder


def test_the_report_counts_everything(root, tmp_path, capsys):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.iterdir()}
    assert check(root, "--json", tmp_path / "report.json") == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["pictures"] == 8
    assert [entry["id"] for entry in report["skipped"]] == ["cut.png", "text.jpg"]
    assert "truncated" in report["skipped"][0]["reason"]
    assert sum(report["splits"].values()) == 6
    assert report["sizes"] == {"least": [20, 64], "median": [75, 75], "most": [100, 90]}
    assert report["too_small"] == ["thin.png"]
    assert report["elongated"] == ["thin.png"]
    assert report["blank"] == ["blank.png"]
    assert report["formats"] == {"PNG": 4, "BMP": 1, "TIFF": 1}
    assert report["modes"] == {"RGB": 3, "RGBA": 1, "L": 1, "CMYK": 1}
    assert report["grey"] == 2
    [group] = report["duplicates"]
    assert group["ids"] == ["a.png", "same.bmp"]
    assert group["captions_differ"]
    captions = report["captions"]
    assert (captions["total"], captions["distinct"]) == (3, 2)
    assert captions["without"] == ["blank.png", "grey.png", "print.tif"]
    assert captions["words"] == {"least": 3, "median": 3, "most": 3}
    assert captions["common_words"][0] == ["a", 3]
    assert captions["shared"] == [{"caption": "a red cat", "ids": ["a.png", "thin.png"]}]
    text = capsys.readouterr().out
    for words in (
        "8 images, 6 usable",
        "for 3 images, from .txt files beside the images;",
        "cut.png: ",
        "a.png = same.bmp (captions differ",
        "2x a red cat",
    ):
        assert words in text
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.iterdir()} == before


def test_a_clean_folder_gives_exit_code_0(tmp_path, capsys):
    for i in range(3):
        noise(i).save(tmp_path / f"{i}.png")
    assert check(tmp_path) == 0
    text = capsys.readouterr().out
    assert "captions: none" in text
    assert "left out" not in text
    assert "colour: data.channels 3, as the images have them" in text


def test_transparency_is_announced_where_most_images_have_it(tmp_path, capsys):
    config, data = tmp_path / "mine.yaml", tmp_path / "data"
    config.write_text("data: {channels: 4}")
    data.mkdir()
    for i in range(3):
        noise(i, mode="RGBA").save(data / f"{i}.png")
        noise(i).save(data / f"opaque-{i}.png")
    assert check(data) == 0 and "transparency: " not in capsys.readouterr().out
    noise(3, mode="RGBA").save(data / "3.png")
    assert check(data) == 0
    told = "transparency: 4 of 7 images have some; data.channels 4 keeps it, else data.files.background fills it\n"
    text = capsys.readouterr().out
    assert told in text and "data.channels 3, as the images have them" in text
    assert check(data, "--config", config) == 0
    assert "transparency: kept (data.channels is 4); 4 of 7 images have some\n" in capsys.readouterr().out


def test_long_lists_are_cut_on_the_terminal(tmp_path, capsys):
    for i in range(12):
        (tmp_path / f"{i:02d}.png").write_bytes(b"junk")
    assert check(tmp_path, "--max", 3) == 1
    text = capsys.readouterr().out
    assert "left out: 12 (100.0%; data.files.max_bad_fraction allows 5.0%)" in text
    assert text.count("known format") == 3
    assert "... and 9 more" in text


def test_equal_pictures_on_both_sides_of_the_split_are_named(tmp_path, capsys):
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        noise(0).save(tmp_path / split / "x.png")
    assert check(tmp_path) == 0
    assert "train/x.png = validation/x.png (in more than one split)" in capsys.readouterr().out


def test_one_image_is_not_announced_as_held_out(tmp_path, capsys):
    noise(0).save(tmp_path / "only.png")
    assert check(tmp_path) == 0
    assert "(1 train, 1 validation; none is held out: validation images are trained on)" in capsys.readouterr().out
    noise(1).save(tmp_path / "other.png")
    assert check(tmp_path) == 0 and "none is held out" not in capsys.readouterr().out


def test_columns_and_resolution_come_from_the_config_or_the_options(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    noise(0).save(data / "a.png")
    (data / "metadata.csv").write_text("file_name,words\na.png,hello there\n")
    with pytest.raises(UserError, match="no caption column 'text'; it has 'words'"):
        check(data)
    assert check(data, "--caption-column", "words") == 0
    config = tmp_path / "mine.yaml"
    config.write_text("data:\n  resolution: 128\n  channels: 3\n  files: {caption_column: words}\n")
    capsys.readouterr()
    assert check(data, "--config", config) == 0
    text = capsys.readouterr().out
    assert "smaller than 128 pixels, to be enlarged: 1" in text
    assert "hello (1), there (1)" in text


def test_what_becomes_of_images_that_are_not_square(root, tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    config.write_text("data:\n  resolution: 64\n  channels: 3\n  files: {bucket_step: 16}\n")
    check(root, "--config", config, "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["buckets"] == [["64x64", 4], ["80x48", 1], ["32x128", 1]]
    assert (report["too_small"], report["elongated"]) == (["thin.png"], [])  # 20 x 90, in a bucket of 32 x 128
    text = capsys.readouterr().out
    assert "buckets (width x height): 64x64 (4), 80x48 (1), 32x128 (1)" in text
    assert "smaller than their bucket, to be enlarged: 1" in text
    config.write_text("data:\n  resolution: [64, 16]\n  channels: 3\n")
    check(root, "--config", config, "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["too_small"] == [] and "thin.png" not in report["elongated"] and len(report["elongated"]) == 5
    assert "more than 2 times as long as their size is, or the reverse: 5" in capsys.readouterr().out


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path, capsys):
    (tmp_path / "x\x1b[31m.png").write_bytes(b"junk")
    noise(0).save(tmp_path / "b.png")
    assert check(tmp_path) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_what_cannot_be_checked_is_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        check(tmp_path / "none")
    with pytest.raises(UserError, match="holds no images"):
        check(tmp_path)
    with pytest.raises(UserError, match="built-in"):
        check("glyphs")
    noise(0).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="cannot write"):
        check(tmp_path, "--json", tmp_path / "no" / "such" / "r.json")


def test_captions_that_are_too_long_for_the_text_encoder_are_counted(tmp_path, capsys):
    data, config = tmp_path / "data", tmp_path / "mine.yaml"
    data.mkdir()
    for i, count in enumerate((10, 30, 31)):
        noise(i).save(data / f"{i}.png")
        (data / f"{i}.txt").write_text("word " * count)
    assert check(data) == 0
    assert "more words than clip.model.context_length 32 holds: at least 1\n" in capsys.readouterr().out
    config.write_text("clip: {model: {context_length: 8}}")
    assert check(data, "--config", config) == 0
    assert "context_length 8 holds: at least 3\n" in capsys.readouterr().out
