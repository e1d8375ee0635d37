from collections import Counter

import numpy as np
import pytest

from ldm.config.settings import DataOptions
from ldm.data import build
from ldm.data.glyphs.captions import RADICALS
from ldm.data.glyphs.components import radical_forms
from ldm.data.glyphs.dataset import load_table, split_of
from ldm.data.glyphs.heldout import HELD_OUT, LATER, PLACES_HELD_OUT
from ldm.data.glyphs.names import OPPOSITE, outer_and_inner, parts_of
from ldm.data.glyphs.recombination import cells, fit, halves, lane, layout_of

pytest.importorskip("pylopdf_fonts_zh_cn", reason="needs the extra 'glyphs'")


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    glyphs = {"limit": 1500, "styles": ["hei"], "recombined": 3000, "hold_out_later": True}
    glyphs["captions"] = {"places": 0.5, "typed": 0.25}
    return build(DataOptions(resolution=48, cache_dir=tmp_path_factory.mktemp("cache"), glyphs=glyphs))


def test_a_lane_is_the_only_gap():
    assert lane(np.array([0, 1, 1, 0, 0, 0, 1, 0], bool)) == 4
    assert lane(np.array([1, 0, 1, 0, 1], bool)) is None
    assert lane(np.array([1, 1], bool)) is None


def test_halves_are_the_ink_on_both_sides_of_the_lane():
    image = np.full((16, 16), 255, np.uint8)
    image[2:6, 3:13] = image[9:15, 5:8] = 0
    assert halves(image, "vertical") == [(2, 6, 3, 13), (9, 15, 5, 8)]
    assert halves(image, "horizontal") == []
    assert halves(image.T, "horizontal") == [(3, 13, 2, 6), (5, 8, 9, 15)]


def test_a_piece_fills_its_box_but_is_not_stretched_without_bound():
    canvas = np.zeros((40, 40), np.float32)
    fit(np.ones((10, 10), np.float32), (4, 20, 10, 26), canvas)
    assert canvas[4:20, 10:26].min() > 0.9 and canvas.sum() == pytest.approx(256, rel=0.01)
    canvas[:] = 0
    fit(np.ones((10, 10), np.float32), (0, 40, 0, 10), canvas)
    assert canvas.sum() == pytest.approx(170, rel=0.01)  # 1.7 times as tall, in the middle
    assert canvas[:11].sum() == 0 and canvas[29:].sum() == 0


def test_cells_do_not_meet():
    first, second = cells("vertical", 0.4, (1.0, 0.5), 100)
    assert first == pytest.approx((5, 39.8, 5, 95)) and second == pytest.approx((42.8, 95, 27.5, 72.5))
    assert cells("horizontal", 0.4, (1.0, 0.5), 100)[0] == pytest.approx((5, 95, 5, 39.8))


def test_images_and_captions_are_functions_of_their_number(splits):
    mixture = splits.mixture
    assert len(mixture) == len(set(mixture.ids)) == 3000 and mixture.image(3).shape == (48, 48, 1)
    np.testing.assert_array_equal(mixture.image(3), mixture.image(3))
    assert not np.array_equal(mixture.image(3), mixture.image(4))
    captions = [mixture.caption(i, np.random.default_rng(i)) for i in range(50)]
    assert captions == [mixture.caption(i, np.random.default_rng(i)) for i in range(50)]
    assert all(caption and caption.isascii() for caption in captions)


def test_each_glyph_has_ink_in_both_places(splits):
    for i in range(200):
        image, parts = splits.mixture.image(i)[..., 0], splits.mixture.parts(i)
        if parts[0][1] == "around":
            continue
        first, second = np.array_split(255 - image.astype(int), 2, axis=1 if parts[0][1] == "left" else 0)
        assert [place for _, place in parts] in (["left", "right"], ["top", "bottom"])
        assert min(first.sum(), second.sum()) > 255 * 10


def test_components_stand_in_all_places_alike_often(splits):
    places = Counter(place for i in range(3000) for piece, place in splits.mixture.parts(i) if piece.name)
    assert set(places) == {*OPPOSITE, "around", "inside"} and places["around"] == places["inside"] > 300
    beside = [places[place] for place in OPPOSITE]
    assert max(beside) < 1.6 * min(beside)
    mouth = Counter(p for i in range(3000) for piece, p in splits.mixture.parts(i) if piece.name == "mouth")
    assert mouth.pop("inside") and len(mouth) == 4 and max(mouth.values()) < 3 * min(mouth.values())


def test_a_component_has_the_form_of_its_place(splits):
    seen = {(piece.components, place) for i in range(3000) for piece, place in splits.mixture.parts(i)}
    for form, only in (("\u624c", "left"), ("\u6c35", "left"), ("\u5202", "right"), ("\u8279", "top")):
        assert {place for component, place in seen if component == form} == {only}
    assert {place for component, place in seen if component == "\u961d"} <= {"left", "right"}
    assert {place for component, place in seen if component == "\u706b"} >= {"left", "right"}


def test_nothing_held_out_is_ever_put_together(splits):
    pairs, forms = HELD_OUT + LATER, radical_forms()
    for i in range(3000):
        parts = splits.mixture.parts(i)
        for piece, place in parts:
            radicals = {r for component in piece.components for r in forms.get(component, ())}
            assert not {(radical, layout_of(parts)) for radical in radicals} & set(pairs)
            assert (piece.name, place) not in PLACES_HELD_OUT


def test_no_character_of_another_split_is_put_together(splits):
    others = {
        tuple(part for part, _ in parts) + (row.structure,)
        for row in load_table()
        if split_of(row, later=True) != "train"
        and (parts := parts_of(row.char, row.structure) or outer_and_inner(row.char, row.structure))
    }
    for i in range(3000):
        parts = splits.mixture.parts(i)
        assert (parts[0][0].components, parts[1][0].components, layout_of(parts)) not in others


def test_pieces_are_cut_from_training_characters_only(splits):
    train = {splits.train.meta(i)["char"] for i in range(len(splits.train))}
    assert splits.mixture.data is splits.train
    assert all(split_of(row, later=True) == "train" for row in load_table() if row.char in train)


def test_no_caption_of_the_whole_mixture_shows_what_is_held_out(splits):
    """Real and made-up captions: no place of a held-out name, and no radical in a layout it is held out from."""
    said = [splits.mixture.caption(i, np.random.default_rng(i)) for i in range(3000)]
    said += [splits.train.caption(i, np.random.default_rng(s)) for i in range(len(splits.train)) for s in range(3)]
    heads = {"vertical": ("vertical stacked", "top and bottom glyph", "stacked vertically")}
    heads["lower left"] = ("enclosed from the lower left", "part under its lower left")
    heads["horizontal"] = ("horizontal stacked", "left and right glyph", "stacked horizontally")
    for radical, layout in HELD_OUT + LATER:
        phrase = f"with the {RADICALS[radical - 1]} radical"
        assert not any(phrase in text and any(h in text for h in heads.get(layout, ())) for text in said), phrase
    assert not any("fur around" in text for text in said)
    for name, place in PLACES_HELD_OUT:
        ways = {"top": ("at the top", "above", "on top"), "bottom": ("at the bottom", "below", "underneath")}
        ways |= {"left": ("on the left", "at the left"), "right": ("on the right", "at the right")}
        assert not any(f"{name} {way}" in text.split(", ") for way in ways[place] for text in said), (name, place)


@pytest.mark.parametrize("style", ["hei", "song"])
def test_what_encloses_stays_and_another_component_is_in_its_hole(style, tmp_path):
    glyphs = {"limit": 1500, "styles": [style], "recombined": 400, "hold_out_later": True}
    mixture = build(DataOptions(resolution=48, cache_dir=tmp_path, glyphs=glyphs)).mixture
    enclosing = [i for i in range(400) if mixture.parts(i)[0][1] == "around"]
    assert 40 < len(enclosing) < 130
    for i in enclosing[:30]:
        (outer, _), (_, place) = mixture.parts(i)
        top, bottom, left, right = outer.box
        before, after = mixture.data.image(outer.picture)[..., 0], mixture.image(i)[..., 0]
        around = np.ones_like(before, bool)
        around[top:bottom, left:right] = False
        np.testing.assert_array_equal(before[around], after[around])
        assert place == "inside" and (after[top:bottom, left:right] < 128).any()
        row = mixture.data.items[outer.picture][0]
        assert outer_and_inner(row.char, row.structure)[0][0] == outer.components and outer.layout == row.structure


def test_captions_say_what_is_around_and_what_is_inside(splits):
    i = next(i for i in range(3000) if splits.mixture.parts(i)[0][1] == "around")
    (outer, _), (inner, _) = splits.mixture.parts(i)
    said = {splits.mixture.caption(i, np.random.default_rng(seed)) for seed in range(200)}
    assert any(f"{outer.name} around {inner.name}" in text for text in said)
    assert any(f"{inner.name} in" in text for text in said) and not any("left of" in text for text in said)
