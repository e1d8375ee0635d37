"""`ldm generate`: what it writes, what it remembers, and what it refuses before doing any work."""

import argparse
import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_model import tiny_folder

from ldm.cli import generate
from ldm.pipelines.image_metadata import KEY, read_png, save_png
from ldm.pipelines.loading import load_pipeline
from ldm.utils.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("generate") / "model")


def call(*argv) -> int:
    parser = argparse.ArgumentParser()
    generate.add_parser(parser.add_subparsers())
    args = parser.parse_args(["generate", *map(str, argv)])
    return args.run(args)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_grid_holds_the_pictures_of_consecutive_seeds(tmp_path, model, capsys):
    out = tmp_path / "new" / "out.png"
    assert call("water", "-m", model, "-o", out, "--grid", "3x2", "--seed", 5, "--steps", 3) in (None, 0)
    line = capsys.readouterr().out
    assert line.startswith(f"{out}: 6 images in ") and line.count("\n") == 1
    sheet = pixels(out)
    assert sheet.shape == (2 * 16, 3 * 16)
    fifth = load_pipeline(model)("water", seed=9, num_inference_steps=3).images[0]
    difference = sheet[16:, 16:32].astype(int) - np.asarray(fifth)
    assert abs(difference).max() <= 1  # one grey level: another batch size
    assert [path.name for path in out.parent.iterdir()] == ["out.png"]  # no temporary left


def test_a_prompt_needs_no_quotes_and_the_seeds_are_said(tmp_path, model, capsys):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    call("water", "on", "fire", "-m", model, "-o", first, "-n", 2, "--steps", 1, "--seed", 7)
    assert capsys.readouterr().out.endswith(" s, seed 7 to 8\n")
    call("water on fire", "-m", model, "-o", second, "-n", 2, "--steps", 1, "--seed", 7)
    assert read_png(first)["prompt"] == "water on fire" and (pixels(first) == pixels(second)).all()


@pytest.mark.parametrize(
    ("words", "prompts"),
    [
        ([], [None]),
        ([""], [""]),
        (["fire"], ["fire"]),
        (["red", "circle"], ["red circle"]),
        (["red circle", "blue square"], ["red circle", "blue square"]),
        (["a", "red", "circle", "blue square", "fire"], ["a red circle", "blue square", "fire"]),
    ],
)
def test_an_argument_with_a_space_is_a_prompt_of_its_own(words, prompts):
    assert generate.prompts_of(words) == prompts


def test_several_prompts_give_a_grid_each_as_if_asked_for_alone(tmp_path, model, capsys):
    options = ("-m", model, "-n", 2, "--steps", 2, "--seed", 3)
    call("water on fire", "a well", "-o", tmp_path / "both.png", *options)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" in ")[0] for line in lines] == [
        f"{tmp_path / 'both-1.png'}: 2 images of 'water on fire'",
        f"{tmp_path / 'both-2.png'}: 2 images of 'a well'",
    ]
    call("a well", "-o", tmp_path / "alone.png", *options)
    assert read_png(tmp_path / "both-2.png") == read_png(tmp_path / "alone.png")
    assert (pixels(tmp_path / "both-2.png") == pixels(tmp_path / "alone.png")).all()
    assert (pixels(tmp_path / "both-1.png") != pixels(tmp_path / "alone.png")).any()
    call("a well", "water on fire", "-o", tmp_path / "{seed}.png", *options)
    assert {path.name for path in tmp_path.glob("[34]-*.png")} == {"3-1.png", "4-1.png", "3-2.png", "4-2.png"}


def test_metadata_is_enough_to_draw_it_again(tmp_path, model):
    first, again, other = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    options = ("--grid", "2x1", "--seed", 3, "--steps", 2, "--guidance", 2.5, "--negative", "fire", "--scale", 2)
    call("wäter 水", "-m", model, "-o", first, *options)
    job = read_png(first)
    assert job == {
        "model": str(model),
        "prompt": "wäter 水",
        "negative": "fire",
        "grid": "2x1",
        "seed": 3,
        "steps": 2,
        "guidance": 2.5,
        "scale": 2,
        "digest": load_pipeline(model).digest,
    }
    with Image.open(first) as image:
        assert image.text["prompt"] == "wäter 水" and image.text["seed"] == "3"
    call("--from", first, "-o", again)
    np.testing.assert_array_equal(pixels(again), pixels(first))
    call("--from", first, "-o", other, "--seed", 4)
    assert read_png(other) == job | {"seed": 4}
    assert (pixels(other) != pixels(first)).any()


def test_a_size_is_remembered(tmp_path, model):
    first, again, other = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    call("water", "-m", model, "-o", first, "--height", 24, "--width", 40, "--steps", 2)
    job = read_png(first)
    assert (job["height"], job["width"]) == (24, 40) and pixels(first).shape == (24, 40)
    expected = load_pipeline(model)("water", seed=0, height=24, width=40, num_inference_steps=2).images[0]
    np.testing.assert_array_equal(pixels(first), np.asarray(expected))
    call("--from", first, "-o", again)
    np.testing.assert_array_equal(pixels(again), pixels(first))
    call("--from", first, "-o", other, "--height", 16)
    assert pixels(other).shape == (16, 40)
    with pytest.raises(UserError, match="height must be a multiple of 4, got 18"):
        call("water", "-m", model, "-o", first, "--height", 18)
    with pytest.raises(UserError, match="--width must be a whole number, 1 or more, got -8"):
        call("water", "-m", model, "-o", first, "--width", -8)


def test_defaults_are_written_out(tmp_path, model):
    call("-m", model, "-o", tmp_path / "a.png")  # unconditional
    job = read_png(tmp_path / "a.png")
    assert (job["prompt"], job["seed"], job["steps"], job["guidance"]) == (None, 0, 4, 3.0)


def test_refined_guidance_is_remembered(tmp_path, model):
    first, again, plain = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    options = ("--interval", 0.2, 0.8, "--rescale", 0.5, "--cfg-zero", "--zero-init", 0.25, "--weak", model)
    call("water", "-m", model, "-o", first, "--seed", 3, "--negative", "fire", *options)
    job = read_png(first)
    told = {"interval": [0.2, 0.8], "rescale": 0.5, "cfg_zero": True, "zero_init": 0.25, "weak": str(model)}
    assert {name: job[name] for name in told} == told
    call("--from", first, "-o", again)
    np.testing.assert_array_equal(pixels(again), pixels(first))
    call("--from", first, "-o", plain, "--no-cfg-zero", "--rescale", 0)
    assert not {"cfg_zero", "rescale"} & read_png(plain).keys()
    assert (pixels(plain) != pixels(first)).any()
    with pytest.raises(UserError, match="interval must be two times"):
        call("water", "-m", model, "-o", first, "--interval", 0.8, 0.2)


def test_separate_files_are_named_and_drawn_by_seed(tmp_path, model, capsys):
    call("water", "-m", model, "-n", 3, "--seed", 7, "--steps", 2, "-o", tmp_path / "p-{seed}.png")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["p-7.png", "p-8.png", "p-9.png"]
    assert "p-7.png ... " in capsys.readouterr().out
    call("--from", tmp_path / "p-8.png", "-o", tmp_path / "again.png")
    difference = pixels(tmp_path / "again.png").astype(int) - pixels(tmp_path / "p-8.png")
    assert abs(difference).max() <= 1


def test_outlines_lie_beside_the_pictures_and_remember_the_settings(tmp_path, capsys):
    pytest.importorskip("contourpy")
    call("enclosed glyph", "-m", "glyphs-fast", "-n", 2, "-o", tmp_path / "a.png", "--svg")
    call("enclosed glyph", "-m", "glyphs-fast", "-n", 2, "-o", tmp_path / "{seed}.png", "--svg")
    assert {path.name for path in tmp_path.iterdir()} == {f"{stem}.{kind}" for stem in "a01" for kind in ("png", "svg")}
    both, *alone = (ElementTree.parse(tmp_path / name).getroot() for name in ("a.svg", "0.svg", "1.svg"))
    assert both.attrib["viewBox"] == "0 0 256 128" and both[0].text == "enclosed glyph"
    assert json.loads(both[1].text) == read_png(tmp_path / "a.png")
    assert [path.attrib["d"] for path in both[2:]] == [each[2].attrib["d"] for each in alone]
    assert capsys.readouterr().err == ""


def test_a_blank_picture_has_an_empty_svg_and_a_note(tmp_path, capsys):
    pytest.importorskip("contourpy")
    generate.save_svg([Image.new("L", (16, 16), 250)], 1, tmp_path / "a.svg", {"prompt": None, "scale": 1})
    assert len(ElementTree.parse(tmp_path / "a.svg").getroot()) == 1  # the settings
    assert "1 of 1 images are blank" in capsys.readouterr().err


def test_scale_repeats_pixels(tmp_path, model):
    call("a", "-m", model, "--steps", 1, "-o", tmp_path / "1.png")
    call("a", "-m", model, "--steps", 1, "-o", tmp_path / "3.png", "--scale", 3)
    np.testing.assert_array_equal(pixels(tmp_path / "3.png"), np.kron(pixels(tmp_path / "1.png"), np.ones((3, 3))))


def test_other_weights_are_pointed_out(tmp_path, model, capsys):
    call("a", "-m", model, "--steps", 1, "-o", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        save_png(image, tmp_path / "b.png", read_png(tmp_path / "a.png") | {"digest": "0" * 16})
    call("--from", tmp_path / "b.png", "-o", tmp_path / "c.png")
    assert "was generated by other weights (0000000000000000)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--grid", "6"), "--grid must be COLUMNSxROWS, for example 6x6, got '6'"),
        (("--grid", "0x3"), "--grid must be"),
        (("--grid", "100x100"), "10000 images in one call are too many"),
        (("-n", "0"), "--number must be a whole number, 1 or more, got 0"),
        (("--seed", "-1"), "--seed must be a whole number, 0 or more, got -1"),
        (("--steps", "0"), "--steps must be"),
        (("--scale", "0"), "--scale must be"),
        (("-o", "out.jpg"), "--output must end in .png, got 'out.jpg'"),
        (("-o", "file/out.png"), "cannot be written: .*file is not a writable folder"),
        (("-o", "folder.png"), "is a folder"),
        (("--from", "nothing.png"), "not a readable image"),
        (("--from", "plain.png"), "carries no settings"),
    ],
)
def test_faults_are_told_before_any_model_is_loaded(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "plain.png")
    with pytest.raises(UserError, match=message) as caught:
        call("a", "-m", "no/such/model", *argv)
    assert "\n" not in str(caught.value)


def remembering(job: object) -> bytes:
    """A PNG with these settings: JSON can hold half of a pair of surrogates, which no text is."""
    info, stream = PngInfo(), io.BytesIO()
    info.add_itxt(KEY, json.dumps(job))
    Image.new("L", (2, 2)).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def test_the_pipelines_refusals_reach_the_user_in_one_line(tmp_path, model):
    with pytest.raises(UserError, match="num_inference_steps must be a whole number, from 1 to 1000"):
        call("a", "-m", model, "--steps", 5000, "-o", tmp_path / "a.png")
    (tmp_path / "odd.png").write_bytes(remembering({"prompt": "caf\udce9", "seed": 1}))
    with pytest.raises(UserError, match="prompt is not Unicode text, got 'caf"):
        call("-m", model, "--from", tmp_path / "odd.png", "-o", tmp_path / "a.png")
    with pytest.raises(UserError, match="guidance_scale must be"):
        call("a", "-m", model, "--guidance", -2, "-o", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(Image.new("L", (2, 2)), path, {"scale": 1})
    before = path.read_bytes()
    monkeypatch.setattr(Image.Image, "save", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_png(Image.new("L", (2, 2), 255), path, {"scale": 1})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_foreign_metadata_is_no_settings(tmp_path):
    (tmp_path / "a.png").write_bytes(remembering([1, 2]))
    with pytest.raises(UserError, match="carries no settings"):
        read_png(tmp_path / "a.png")
