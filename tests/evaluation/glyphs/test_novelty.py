"""Planted copies are found, other characters are not, and what is new is counted as defined."""

import numpy as np
import pytest

from ldm.config.settings import DataOptions, GlyphOptions
from ldm.data.glyphs.dataset import splits as glyph_splits
from ldm.evaluation.glyphs import novelty as module
from ldm.evaluation.glyphs.novelty import (
    COPY,
    Neighbours,
    Pool,
    distinctness,
    nearest_glyphs,
    novelty,
    to_size,
)
from ldm.evaluation.metrics.corruptions import blurred, moved, reweighted
from ldm.evaluation.ocr import OcrResult
from ldm.utils.errors import UserError

pytest.importorskip("pylopdf_fonts_zh_cn")


@pytest.fixture(scope="module")
def glyphs(glyph_cache):
    data = glyph_splits(DataOptions(cache_dir=glyph_cache, glyphs=GlyphOptions(limit=300)))
    return {name: np.stack([part.image(i)[..., 0] for i in range(len(part))]) for name, part in data.items()}


@pytest.fixture(scope="module")
def pool(glyphs):
    return Pool(glyphs["train"])


def test_a_glyph_is_its_own_nearest_and_a_move_changes_nothing(glyphs, pool):
    some = glyphs["train"][5:25]
    for images in (some, moved(some, 3, -3), moved(some, -2, 1)):
        found = nearest_glyphs(images, pool)
        assert found.index.tolist() == list(range(5, 25))
        assert found.similarity == pytest.approx(np.ones(20), abs=1e-2)


def test_one_dot_makes_another_character(glyph_cache):
    """Characters that share all but a stroke, and a copy in another weight: overlap could not tell them apart."""
    from ldm.data.glyphs.rendering import render, style_font

    images, _ = render(style_font("hei"), "\u5927\u592a\u72ac\u738b\u7389\u4e3b\u9e1f\u4e4c", 64)
    pool = Pool(images[[0, 3, 6]])  # big, king, bird
    assert (nearest_glyphs(images[[1, 2, 4, 5, 7]], pool).similarity < COPY).all()
    found = nearest_glyphs(np.concatenate([reweighted(images[[0, 3, 6]], step) for step in (-1, 1)]), pool)
    assert found.index.tolist() == [0, 1, 2] * 2 and (found.similarity > COPY).all()


def test_sizes_other_than_64_are_compared_alike(glyphs, pool):
    large = np.repeat(np.repeat(glyphs["train"][:6], 2, 1), 2, 2)
    found = nearest_glyphs(moved(large, 6, 6)[..., None], pool)
    assert found.index.tolist() == list(range(6)) and found.similarity.min() > 0.99
    assert to_size(large[:, ::4, ::4]).shape == (6, 64, 64)
    with pytest.raises(UserError, match="make them grey"):
        nearest_glyphs(large.astype(np.float32), pool)


def test_neither_batches_nor_an_empty_page_do_harm(glyphs, pool):
    images = np.concatenate([glyphs["test"][:5], np.full((1, 64, 64), 255, np.uint8)])
    whole, parts = nearest_glyphs(images, pool), nearest_glyphs(images, pool, batch=2)
    assert (whole.index == parts.index).all() and whole.similarity == pytest.approx(parts.similarity)
    assert whole.similarity[-1] < COPY
    assert len(nearest_glyphs(images[:0], pool).index) == 0


def test_the_similarity_is_one_less_the_worst_window_root(glyphs):
    """A block missing in an empty corner: after a Gaussian of 1 pixel the window of 7 x 7 on it has a known mean."""
    whole = np.full((64, 64), 255, np.uint8)
    whole[20:44, 20:44] = 0
    spot = whole.copy()
    spot[30:34, 30:34] = 255
    ours = np.stack([spot] * len(module.WEIGHTS))
    ring = np.zeros((80, 80))
    ring[30:34, 30:34] = 1
    spread = module._blurring(1.0).astype(float) @ ring @ module._blurring(1.0).astype(float)
    window = max((spread[y : y + 7, x : x + 7] ** 2).mean() for y in range(24, 34) for x in range(24, 34))
    found = module.similarities(ours, whole[None])
    assert found[0] == pytest.approx(1 - window**0.5, abs=0.02)


# ---- counting -------------------------------------------------------------------------------------------------------


def test_new_means_right_and_no_copy_and_not_read():
    near = Neighbours(np.arange(6), np.array([0.99, 0.3, 0.3, 0.3, 0.3, 0.3], np.float32))
    right = np.array([1, 1, 1, 1, 0, 1], bool)
    read = OcrResult(["a", "b", "c", "", "d", "ef"], np.array([0.1, 0.9, 0.4, 0.9, 0.1, 0.9]))
    found = novelty(near, right, read)
    assert found["copies"]["share"] == pytest.approx(1 / 6, abs=1e-4)
    assert found["existing"]["share"] == pytest.approx(1 / 6, abs=1e-4)  # only b: c is unsure, no others are one
    assert found["new_and_well_formed"]["share"] == pytest.approx(3 / 6)  # c, '' and 'ef'
    assert "existing" not in novelty(near) and "new_and_well_formed" not in novelty(near, None, read)
    assert novelty(near, threshold=0.2)["copies"]["share"] == 1


def test_repeated_pictures_of_one_prompt_are_seen(glyphs):
    four = glyphs["train"][:8:2]  # one style
    same = np.stack([four[0], moved(four[:1], 1, 1)[0], reweighted(four[:1], 1)[0], blurred(four[:1], 0.8)[0]])
    found = distinctness({"different": four, "same": same})
    assert found["distinct"]["share"] == 5 / 8
    assert found["worst"] == {"same": {"n": 4, "share": 0.25, "interval": found["worst"]["same"]["interval"]}}
    assert distinctness({})["worst"] is None
    across = distinctness({"one": four, "other": four})  # the same pictures under two prompts are no collapse of either
    assert across["distinct"]["share"] == 1
