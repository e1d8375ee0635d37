"""The emoji set: what is left out, what is held out, captions, licences, and how the trainer reads it."""

import json

import numpy as np
import pytest

from ldm.config.settings import DataOptions
from ldm.data import build
from ldm.data.image_files.dataset import hash_fraction as hash_of_data
from scripts import build_emoji
from scripts.build_emoji import COLOURS, HELD_OUT, SHAPES, Icon, captions_of, group_of, hash_fraction, is_variant
from tests.tiny_emoji import ROWS, tiny_set, write_packages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return tiny_set(tmp_path_factory.mktemp("build"), patch)


def rows(folder, split):
    return [json.loads(line) for line in (folder / split / "metadata.jsonl").read_text().splitlines()]


def test_the_set_has_every_name_in_every_style_and_nothing_else(folder):
    found = {(row["name"], row["style"]) for split in ("train", "validation", "test") for row in rows(folder, split)}
    styles = ("noto", "twemoji", "fluent", "openmoji")
    assert found == {(name, style) for name in ROWS for style in styles}  # no skin tone, copy, hidden or blank one
    assert len(list(folder.glob("*/*.png"))) == len(found)


def test_a_name_is_on_one_side_in_all_styles(folder):
    sides = {split: {row["name"] for row in rows(folder, split)} for split in ("train", "validation", "test")}
    assert sides["validation"] == {"axe", "taco"} == set(json.loads((folder / "heldout.json").read_text())["names"])
    assert not sides["train"] & (sides["validation"] | sides["test"])
    assert len(rows(folder, "validation")) == 8


def test_pairs_held_out_are_six_of_six_colours_two_of_each_shape(folder):
    pairs = json.loads((folder / "heldout.json").read_text())["pairs"]
    assert len({colour for _, colour in pairs}) == 6 and [shape for shape, _ in pairs] == [
        shape for shape in SHAPES for _ in range(2)
    ]
    assert {row["name"] for row in rows(folder, "test")} == {f"{colour}-{shape}" for shape, colour in pairs}
    assert ["heart", "blue"] in pairs and not {"red", "black"} & {colour for _, colour in pairs}


def test_the_trainer_reads_the_division_and_all_captions(folder, tmp_path):
    splits = build(DataOptions(source=str(folder), resolution=64, channels=3, cache_dir=tmp_path))
    assert len(splits.validation) == 8 and len(splits.test) == 24 and len(splits.train) == 4 * len(ROWS) - 32
    place = splits.train.ids.index("train/fluent-red-apple.png")
    told = {splits.train.caption(place, np.random.default_rng(seed)) for seed in range(60)}
    assert told == set(captions_of(Icon("red-apple", "food", "fluent", "")))


def test_captions_are_natural():
    assert captions_of(Icon("red-apple", "food", "fluent", "")) == [
        "a red apple emoji, fluent style",
        "red apple, food, fluent style",
        "red apple in fluent style",
        "a fluent style emoji: red apple",
        "a red apple emoji, food",
    ]
    own = captions_of(Icon("orange-heart", "symbol", "openmoji", ""))
    assert own[0] == "an orange heart emoji, openmoji style" and own[3] == "an openmoji style emoji: orange heart"
    assert captions_of(Icon("flag-trinidad-and-tobago", "flag", "noto", ""))[1].startswith(
        "flag of Trinidad and Tobago,"
    )
    assert "a woman's hat" in captions_of(Icon("womans-hat", "object", "noto", ""))[0]
    assert "one o'clock" in captions_of(Icon("one-oclock", "object", "noto", ""))[0]


@pytest.mark.parametrize(
    "name, category, group",
    [
        ("tulip", "animal", "plant"),
        ("cat", "animal", "animal"),
        ("two-hearts", "face", "symbol"),
        ("smiling-cat-with-heart-eyes", "face", "face"),
        ("star-struck", "face", "face"),
        ("crescent-moon", "travel", "weather"),
        ("fire-engine", "travel", "travel"),
        ("one-oclock", "travel", "object"),
        ("stopwatch", "travel", "object"),
    ],
)
def test_groups_follow_from_category_and_name(name, category, group):
    assert group_of(name, category) == group


@pytest.mark.parametrize(
    "code, variant",
    [
        ("1f44d", False),
        ("1f44d-1f3fb", True),  # skin tone
        ("1f9d1-200d-1f680", False),  # astronaut
        ("1f468-200d-1f680", True),  # the man among them
        ("1f3c3-200d-2640-fe0f", True),
        ("2640", False),  # the sign alone
        ("1f9d1-200d-1f9d1-200d-1f9d2", True),  # family
        ("1f1eb-1f1f7", False),  # a flag
        ("1f1eb", True),  # one letter of it
    ],
)
def test_variants_are_known_by_their_code_points(code, variant):
    assert is_variant(code) is variant


def test_the_rule_of_names_is_the_one_that_folders_are_divided_by():
    names = [f"name-{i}" for i in range(4000)]
    assert all(hash_fraction(name) == hash_of_data(name) for name in names[:50])
    assert np.mean([hash_fraction(name) < HELD_OUT for name in names]) == pytest.approx(HELD_OUT, abs=0.012)
    assert len(COLOURS) == 8


def test_without_share_alike_openmoji_is_left_out_and_nothing_else_changes(folder, tmp_path, monkeypatch):
    free = tiny_set(tmp_path, monkeypatch, "--without-share-alike")
    for split in ("train", "validation", "test"):
        assert rows(free, split) == [row for row in rows(folder, split) if row["style"] != "openmoji"]
    assert "CC-BY-SA" in (folder / "NOTICE").read_text() and "CC-BY-SA" not in (free / "NOTICE").read_text()


def test_a_package_with_another_licence_is_refused(tmp_path):
    npm = write_packages(tmp_path / "npm", twemoji="CC-BY-NC-4.0")
    with pytest.raises(SystemExit, match="twemoji states CC-BY-4.0, CC-BY-NC-4.0|twemoji states CC-BY-NC-4.0"):
        build_emoji.main([str(tmp_path / "emoji"), "--npm", str(npm)])


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"")
    with pytest.raises(SystemExit, match="is not an empty folder"):
        build_emoji.main([str(tmp_path)])


def test_an_image_is_rendered_on_white():
    pytest.importorskip("resvg_py")
    icons = {"icons": {"dot": {"body": '<circle cx="8" cy="8" r="4" fill="currentColor"/>'}}}
    pixels = np.asarray(build_emoji.render(build_emoji.svg_of(icons, "dot")))
    assert pixels.shape == (64, 64, 3) and pixels[0, 0].tolist() == [255] * 3 and pixels[32, 32].tolist() == [0] * 3
