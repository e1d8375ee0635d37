import hashlib
import pickle
import re
from collections import Counter

import numpy as np
import pytest

from ldm.config.settings import DataOptions
from ldm.data.glyphs.captions import STRUCTURES
from ldm.data.glyphs.dataset import load_table, split_characters, split_of
from ldm.data.glyphs.dataset import splits as glyph_splits
from ldm.data.glyphs.heldout import HELD_OUT, LATER
from ldm.data.glyphs.rendering import style_font
from ldm.utils.errors import UserError

pytest.importorskip("pylopdf_fonts_zh_cn", reason="needs the extra 'glyphs'")


@pytest.fixture(scope="module")
def table():
    return {row.char: row for row in load_table()}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return DataOptions(resolution=32, cache_dir=tmp_path_factory.mktemp("cache"), glyphs={"limit": 24})


@pytest.fixture(scope="module")
def splits(options):
    return glyph_splits(options)


def test_glyphs_have_no_transparency(tmp_path):
    with pytest.raises(UserError, match="data.channels must be 1 or 3, got 4"):
        glyph_splits(DataOptions(channels=4, cache_dir=tmp_path))


def test_table_is_complete_and_well_formed(table):
    assert len(load_table()) == len(table) == 20613
    assert sum(row.common for row in table.values()) == 6738
    for row in table.values():
        assert 1 <= row.radical <= 214 and 1 <= row.strokes <= 64 and row.structure in STRUCTURES


@pytest.mark.parametrize(
    "char, radical, strokes, structure",
    [
        ("\u6c5f", 85, 6, "horizontal"),  # river
        ("\u82b1", 140, 7, "vertical"),  # flower
        ("\u56fd", 31, 8, "enclosed"),  # country
        ("\u75c5", 104, 10, "upper left"),  # illness
        ("\u9053", 162, 12, "lower left"),  # way
        ("\u53e5", 30, 5, "upper right"),  # sentence
        ("\u554f", 30, 11, "above"),  # ask
        ("\u51f6", 17, 4, "below"),  # fierce
        ("\u533a", 23, 4, "left"),  # area
        ("\u6c34", 85, 4, "single"),  # water
        ("\u624b", 64, 4, "single"),  # hand
        ("\u54c1", 30, 9, "triangle"),  # goods
        ("\u8857", 144, 12, "three across"),  # street
        ("\u71da", 86, 16, "two by two"),  # flames
    ],
)
def test_known_characters(table, char, radical, strokes, structure):
    row = table[char]
    assert (row.radical, row.strokes, row.structure) == (radical, strokes, structure)


def test_senses_are_fit_for_prompts(table):
    useless = re.compile(r"surname|same as|variant|\bname of\b|used in|radical|\(|province")
    for row in table.values():
        for sense in row.senses:
            assert re.fullmatch(r"[a-z0-9][a-z0-9 '\-/&]*", sense), (row.char, sense)
            assert len(sense.split()) <= 8 and not useless.search(sense), (row.char, sense)
    assert table["\u6c34"].senses[0] == "water"
    assert sum(bool(row.senses) for row in table.values()) > 19000


def test_every_character_is_in_exactly_one_split():
    names = Counter(row.codepoint for members in split_characters().values() for row in members)
    assert len(names) == 20613 and set(names.values()) == {1}


def test_split_sizes():
    sizes = {name: len(members) / 20613 for name, members in split_characters().items()}
    assert 0.86 < sizes["train"] < 0.90 and 0.015 < sizes["heldout"] < 0.03
    assert 0.045 < sizes["validation"] < 0.055 and 0.045 < sizes["test"] < 0.055


def test_the_split_is_the_documented_hash_and_never_changes():
    for row in load_table()[::500]:
        u = int(hashlib.sha256(f"ldm glyph U+{row.codepoint:04X}".encode()).hexdigest()[:16], 16) / 2**64
        expected = "test" if u < 0.05 else "validation" if u < 0.1 else "train"
        pair = (row.radical, row.structure)
        assert split_of(row) == ("heldout" if pair in HELD_OUT else expected)
        held = HELD_OUT if u < 0.1 else HELD_OUT + LATER
        assert split_of(row, later=True) == ("heldout" if pair in held else expected)


def test_held_out_pairs_occur_nowhere_else_but_their_parts_do():
    splits = split_characters(later=True)
    train = splits["train"]
    pairs = {(row.radical, row.structure) for name in ("train", "validation", "test") for row in splits[name]}
    assert not pairs & set(HELD_OUT)
    assert not {(row.radical, row.structure) for row in train} & set(LATER)
    assert {(row.radical, row.structure) for row in splits["heldout"]} == set(HELD_OUT + LATER)
    for radical, structure in HELD_OUT:
        assert sum(row.radical == radical for row in train) >= 40
        assert sum(row.structure == structure for row in train) >= 400


def test_common_keeps_gb2312_on_the_same_sides():
    every, common = split_characters(), split_characters("common")
    for name in every:
        assert common[name] == [row for row in every[name] if row.common]


def test_limit_keeps_the_first_and_shrinks_the_rest():
    every, some = split_characters(), split_characters(limit=2000)
    assert len(some["train"]) == 2000
    assert all(every[name][: len(members)] == members for name, members in some.items())
    assert len(some["test"]) == round(2000 / len(every["train"]) * len(every["test"]))
    assert {name: len(members) for name, members in split_characters(limit=3).items()} == {
        "train": 3,
        "validation": 16,
        "test": 16,
        "heldout": 16,
    }
    assert split_characters(limit=10**6) == every


def test_samples_are_pictures_with_ids_and_captions(splits):
    train = splits["train"]
    assert len(train) == 48 and len(set(train.ids)) == 48
    assert train.ids[0].endswith("/hei") and train.ids[1] == train.ids[0].replace("hei", "song")
    image = train.image(0)
    assert image.shape == (32, 32, 1) and image.dtype == np.uint8 and image.max() == 255 and image.min() < 60
    assert not np.array_equal(image, train.image(1))
    assert train.has_captions and train.caption(0, np.random.default_rng(0))


def test_meta_describes_the_sample_of_that_id(splits, table):
    data = splits["test"]
    for i in range(len(data)):
        meta = data.meta(i)
        assert data.ids[i] == f"{meta['codepoint']}/{meta['style']}"
        assert meta["structure"] == table[meta["char"]].structure


def test_pictures_show_their_own_character(splits):
    from ldm.data.glyphs.rendering import render

    data = splits["train"]
    for i in range(12):
        meta = data.meta(i)
        np.testing.assert_array_equal(data.image(i)[..., 0], render(style_font(meta["style"]), meta["char"], 32)[0][0])


def test_three_channels_repeat_the_grey(options, splits):
    colour = glyph_splits(options.model_copy(update={"channels": 3}))["train"]
    np.testing.assert_array_equal(colour.image(5), np.repeat(splits["train"].image(5), 3, axis=-1))
    assert colour.fingerprint != splits["train"].fingerprint


def test_pickled_data_is_small_and_equal(splits):
    data = splits["train"]
    data.image(0)  # opens the memory map, which must stay behind
    blob = pickle.dumps(data)
    assert len(blob) < 20_000
    copy = pickle.loads(blob)
    np.testing.assert_array_equal(copy.image(7), data.image(7))
    assert copy.fingerprint == data.fingerprint


def test_fingerprint_follows_the_pixels_and_not_the_captions(options, splits):
    def fingerprint(**changes):
        return glyph_splits(DataOptions(**(options.model_dump() | changes)))["train"].fingerprint

    glyphs = options.glyphs.model_dump()
    same = splits["train"].fingerprint
    assert same != splits["test"].fingerprint
    assert fingerprint(glyphs=glyphs | {"captions": {"plain": 1}}) == same
    assert fingerprint(resolution=40) != same
    assert fingerprint(glyphs=glyphs | {"styles": ["song"]}) != same
    assert fingerprint(glyphs=glyphs | {"limit": 25}) != same


def test_own_font_file(options):
    glyphs = {"limit": 4, "font_file": style_font("song")}
    data = glyph_splits(DataOptions(resolution=32, cache_dir=options.cache_dir, glyphs=glyphs))["train"]
    assert len(data) == 4 and all(name.endswith("/own") for name in data.ids)


def test_characters_a_font_lacks_are_left_out(options, monkeypatch, splits):
    from ldm.data.glyphs import dataset as module

    def lacking(font, characters, resolution, cache_dir):
        folder, bad = cached(font, characters, resolution, cache_dir)
        return folder, [*bad, 0] if "Sans" in font.name else bad

    cached = module.cached_glyphs
    monkeypatch.setattr(module, "cached_glyphs", lacking)
    ids = {name for data in glyph_splits(options).values() for name in data.ids}
    every = {name for data in splits.values() for name in data.ids}
    gone = every - ids
    assert len(gone) == 1 and gone.pop() == f"U+{min(int(name[2:].split('/')[0], 16) for name in every):04X}/hei"
