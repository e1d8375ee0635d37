import argparse
import json

import numpy as np
import pytest
import yaml

from ldm.cli import data as commands
from ldm.config.settings import DataOptions
from ldm.data.glyphs.dataset import splits as glyph_splits
from ldm.hub import glyph_dataset as publish
from ldm.utils.errors import UserError

pytest.importorskip("pylopdf_fonts_zh_cn", reason="needs the extra 'glyphs'")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def options(cache):
    return DataOptions(resolution=32, cache_dir=cache, glyphs={"limit": 10})


@pytest.fixture
def command(cache):
    def run(*words):
        parser = argparse.ArgumentParser()
        commands.add_parser(parser.add_subparsers())
        args = parser.parse_args(["glyphs", "--limit", "10", "--resolution", "32", "--cache-dir", str(cache), *words])
        return args.run(args)

    return run


def test_the_repository_loads_with_datasets_and_equals_the_source(command, options, tmp_path, monkeypatch):
    from datasets import load_dataset

    assert command("--out", str(tmp_path / "set")) == 0
    loaded = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "hf"))
    source = glyph_splits(options)
    assert {name: len(rows) for name, rows in loaded.items()} == {name: len(data) for name, data in source.items()}
    for i, row in enumerate(loaded["train"]):
        np.testing.assert_array_equal(np.asarray(row["image"]), source["train"].image(i)[..., 0])
        assert len(row["text"]) == publish.CAPTIONS and all(row["text"])
        assert {key: row[key] for key in source["train"].meta(i)} == source["train"].meta(i)


def test_the_card_names_splits_sources_and_counts(command, tmp_path):
    command("--out", str(tmp_path / "set"))
    _, head, body = (tmp_path / "set" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(head)
    assert [part["split"] for part in card["configs"][0]["data_files"]] == ["train", "validation", "test", "heldout"]
    assert "Unihan" in body and "cjk-decomp" in body and "| `train` | 20 |" in body
    for name in publish.NOTICES:
        assert (tmp_path / "set" / name).stat().st_size > 500
    assert "was modified" in (tmp_path / "set" / "NOTICE.md").read_text(encoding="utf-8")


def test_written_twice_it_is_the_same(command, tmp_path):
    for name in ("a", "b"):
        command("--out", str(tmp_path / name))
    first, second = (sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()) for name in "ab")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_a_folder_with_something_in_it_is_left_alone(command, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("keep")
    with pytest.raises(UserError, match="new or an empty folder"):
        command("--out", str(tmp_path / "mine"))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["note"]


def test_a_failed_write_leaves_nothing_behind(options, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "card", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        publish.write_repository(glyph_splits(options), options, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "--out DIR"),
        (["--push", "a/b/c"], "USER/NAME"),
        (["--out", "x", "--resolution", "30"], "--resolution: .*got 30"),
        (["--out", "x", "--limit", "-1"], "--limit"),
    ],
)
def test_bad_arguments_end_in_one_line(command, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command(*words)


def test_an_unreachable_hub_is_one_line(command):
    with pytest.raises(UserError, match="someone/glyphs could not be uploaded: .*offline mode"):
        command("--push", "someone/glyphs")


def test_captions_of_a_picture_depend_on_its_id_alone(options):
    long, short = (glyph_splits(options.model_copy(update={"glyphs": g})) for g in _glyph_options(options))
    texts = {row["codepoint"] + row["style"]: row["text"] for row in publish._table(long["train"])}
    for row in publish._table(short["train"]):
        assert json.dumps(texts[row["codepoint"] + row["style"]]) == json.dumps(row["text"])


def _glyph_options(options):
    return options.glyphs, options.glyphs.model_copy(update={"limit": 5})
