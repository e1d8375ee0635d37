"""`ldm edit`: each verb writes its picture with what made it, and refuses before the work."""

import argparse
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import tiny_folder

from ldm.cli import edit as edit_cli
from ldm.cli.main import COMMANDS, build_parser, main
from ldm.pipelines import editing as verbs
from ldm.pipelines.loading import load_pipeline
from ldm.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
VERBS = COMMANDS["edit"][0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("edit") / "model")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
    return path


def call(verb, *argv) -> int:
    parser = argparse.ArgumentParser()
    edit_cli.add_parser(parser.add_subparsers())
    args = parser.parse_args([verb, *map(str, argv)])
    return args.run(args)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_registry_names_every_verb():
    parser = argparse.ArgumentParser()
    added = parser.add_subparsers()
    edit_cli.add_parser(added)
    assert list(added.choices) == list(VERBS)
    for name in VERBS:
        assert callable(build_parser(["edit", name]).parse_args(["edit", name, *NEEDED[name]]).run)


NEEDED = {
    "image-to-image": ["a.png"],
    "inpaint": ["a.png", "--mask", "b.png"],
    "invert": ["a.png"],
    "interpolate": ["water"],
    "vary": [],
    "compose": ["water"],
    "weigh": ["water"],
}


@pytest.mark.parametrize(
    ("verb", "argv", "size"),
    [
        ("image-to-image", ["SOURCE", "water", "--strength", "0.3", "0.6", "1", "--scale", 2], (96, 32)),
        ("image-to-image", ["SOURCE", "water", "--strength", "0.3", "0.6", "1", "-n", 2], (32, 48)),
        ("inpaint", ["SOURCE", "water", "--box", 0, 0, 8, 16, "-n", 2, "--resample", 2], (32, 16)),
        ("inpaint", ["SOURCE", "--mask", "SOURCE"], (16, 16)),
        ("invert", ["SOURCE", "water", "fire", "--was", "earth", "--rounds", 2], (32, 16)),
        ("invert", ["SOURCE", "--was", "earth"], (16, 16)),
        ("interpolate", ["water", "fire", "--frames", 3, "--to-seed", 4, "--words", "slerp"], (48, 16)),
        ("vary", ["water", "--amount", 0.2, "-n", 2], (32, 16)),
        ("compose", ["water", "--and", "fire:0.5", "--not", "earth", "-n", 2], (32, 16)),
        ("weigh", ["(water:1.5) glyph", "(water:0) glyph"], (32, 16)),
    ],
)
def test_every_verb_draws_and_remembers(tmp_path, model, source, capsys, verb, argv, size):
    out = tmp_path / "new" / "out.png"
    argv = [source if each == "SOURCE" else each for each in argv]
    assert call(verb, *argv, "-m", model, "-o", out, "--steps", 2, "--guidance", 2) == 0
    with Image.open(out) as image:
        told = json.loads(image.info["ldm-edit"])
        assert image.size == size and "ldm" not in image.info
    assert told["verb"] == verb and told["steps"] == 2 and told["digest"]
    assert capsys.readouterr().out.startswith(f"{out}: ")


def test_the_shell_draws_what_python_draws(tmp_path, model, source):
    out, pipeline = tmp_path / "out.png", load_pipeline(model)
    call(
        "compose",
        "water",
        "--not",
        "fire:0.5",
        "-m",
        model,
        "-o",
        out,
        "--steps",
        2,
        "--seed",
        3,
        "--negative",
        "earth",
    )
    terms = [("water", 1.0), ("fire", -0.5)]
    image = verbs.compose(pipeline, terms, num_inference_steps=2, seed=3, negative_prompt="earth").images[0]
    assert (pixels(out) == np.asarray(image)).all()
    call("inpaint", source, "water", "--box", 4, 0, 16, 9, "-m", model, "-o", out, "--steps", 2)
    kept = verbs.box_mask(source, (4, 0, 16, 9)) == 0
    assert (pixels(out)[kept] == pixels(source)[kept]).all() and not (pixels(out) == pixels(source)).all()


def test_an_interpolation_may_be_a_moving_picture(tmp_path, model):
    out = tmp_path / "out.gif"
    assert call("interpolate", "water", "fire", "-m", model, "-o", out, "--frames", 4, "--steps", 2, "--scale", 3) == 0
    with Image.open(out) as image:
        assert image.n_frames == 4 and image.size == (48, 48) and image.info["loop"] == 0
        assert json.loads(image.info["comment"])["ldm-edit"]["second"] == "fire"
    assert [path.name for path in tmp_path.iterdir()] == ["out.gif"]


def test_an_interpolation_may_be_a_video(tmp_path, model):
    av, out = pytest.importorskip("av"), tmp_path / "out.mp4"
    assert call("interpolate", "water", "fire", "-m", model, "-o", out, "--frames", 4, "--steps", 2) == 0
    with av.open(str(out)) as film:
        assert film.streams.video[0].frames == 4
        assert json.loads(film.metadata["comment"])["ldm-edit"]["second"] == "fire"


def test_a_video_without_its_encoder_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SystemExit) as ended:
        main(["edit", "interpolate", "a", "-m", "nowhere", "-o", str(tmp_path / "out.mp4")])
    assert ended.value.code == 2 and ".[app]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "argv", "words"),
    [
        ("vary", ["-o", "out.gif"], "must end in .png"),
        ("interpolate", ["a", "-o", "out.webm"], "must end in .png or .gif or .mp4"),
        ("interpolate", ["a", "-n", 2], "--frames"),
        ("interpolate", ["a", "--frames", 1], "frames must be"),
        ("interpolate", ["a", "--words", "cubic"], "words must be one of"),
        ("image-to-image", ["no.png", "a"], "no.png cannot be used: no such file"),
        ("image-to-image", ["SOURCE", "a", "--strength", "2"], "strength must be from 0 to 1"),
        ("inpaint", ["SOURCE", "a", "--box", 0, 0, 40, 4], "box must be"),
        ("invert", ["SOURCE", "a", "--seed", 4], "takes no"),
        ("vary", ["a", "--scale", 0], "--scale must be"),
        ("vary", ["a", "--steps", 0], "num_inference_steps must be"),
        ("vary", ["a", "--seed", -1], "seed must be"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path, monkeypatch, model, source, verb, argv, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        call(verb, *[source if each == "SOURCE" else each for each in argv], "-m", model)
    assert not list(tmp_path.iterdir())


# ---- the page -------------------------------------------------------------------------------------------------------


def commands():
    page = (ROOT / "docs/use/edit.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.M | re.S)
    return [shlex.split(block.replace("\\\n", " "))[1:] for block in blocks if block.startswith("ldm edit")]


def test_the_page_shows_every_verb():
    assert {words[1] for words in commands()} == set(VERBS)


@pytest.mark.parametrize("words", commands(), ids=lambda words: Path(words[-1]).stem)
def test_a_figure_of_the_page_was_made_by_the_command_on_it(words):
    args = build_parser(words).parse_args(words)
    with Image.open(ROOT / "docs/figures" / args.output) as image:
        told = json.loads(image.info["ldm-edit"] if image.format == "PNG" else image.info["comment"])
    told = told.get("ldm-edit", told)
    assert told.pop("digest") == load_pipeline(ROOT / "models/glyphs").digest
    told = {
        name: value.removeprefix("docs/figures/") if isinstance(value, str) else value for name, value in told.items()
    }
    assert {name: getattr(args, name) for name in told} == told
    assert f"(../figures/{Path(args.output).name})" in (ROOT / "docs/use/edit.md").read_text(encoding="utf-8")
