"""Folders that cannot be written, and how a place may be named: refused in one line before the work, or found."""

import ctypes
import os
from pathlib import Path

import pytest
from caches import write_pictures
from forked import Child

from ldm.cli.main import build_parser
from ldm.config.overrides import parse
from ldm.data import build
from ldm.training.run_directory import open_run


def command(*words) -> object:
    args = build_parser([*map(str, words)]).parse_args([*map(str, words)])
    return args.run(args)


def settings(project: Path, *more):
    return parse("vae", [str(project / "mine.yaml"), *map(str, more)])[0]


def build_cache(project: Path, out: Path) -> object:
    return build(settings(project, "--data.cache-dir", out / "cache").data)


# what is written -> how, below a place
WAYS = {
    "a run": lambda project, out: open_run(settings(project, "--output-dir", out / "run"), "vae"),
    "the cache": build_cache,
    "a picture": lambda project, out: command("generate", "-o", out / "a.png", "--steps", 1),
    "an export": lambda project, out: command("export", project / "model", "-o", out / "model"),
    "a report": lambda project, out: command("data", "check", project / "data", "--json", out / "a.json"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A config and its pictures, and a model to export."""
    from tiny_model import tiny_folder

    folder = tmp_path_factory.mktemp("project")
    write_pictures(folder / "data")
    (folder / "mine.yaml").write_text(f"data: {{source: {folder / 'data'}, resolution: 16}}\n")
    tiny_folder(folder / "model")
    return folder


def as_anybody(work):
    """`work` without the powers of root, to whom no folder is closed; it still owns what root owns."""

    def run():
        if os.geteuid() == 0:
            header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
            assert ctypes.CDLL(None).capset(header, none) == 0
        return work()

    return run


def assert_refused(child: Child) -> None:
    code, said = child.wait(), child.said()
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in said, said
    assert "writ" in lines[0], said


@pytest.mark.parametrize("way", WAYS)
def test_a_file_in_place_of_a_folder_is_refused_in_one_line(way, project, tmp_path, survived):
    (tmp_path / "taken").write_text("mine")
    assert_refused(Child(lambda: WAYS[way](project, tmp_path / "taken") and None, tmp_path / "said"))
    assert (tmp_path / "taken").read_text() == "mine"
    survived("file in place of a folder", 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_that_may_not_be_written_is_refused_in_one_line(way, project, tmp_path, survived):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    assert_refused(Child(as_anybody(lambda: WAYS[way](project, closed) and None), tmp_path / "said"))
    assert not list(closed.iterdir())
    survived("folder that may not be written", 1)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_home_is_found_by_its_sign_and_relative_places_from_where_one_is(way, project, tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir(), here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for out, place in ((Path("~"), home), (Path("below"), here / "below")):
        (here / "below").mkdir(exist_ok=True)
        WAYS[way](project, out)
        assert list(place.iterdir()), f"{out} led elsewhere"
    assert [path.name for path in here.iterdir()] == ["below"]
