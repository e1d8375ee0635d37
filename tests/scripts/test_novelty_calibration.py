"""Synthetic copies are found, other characters are not, and the threshold lies between them."""

import numpy as np
import pytest

from ldm.config.settings import DataOptions, GlyphOptions
from ldm.data.glyphs.dataset import splits as glyph_splits
from ldm.evaluation.glyphs.novelty import COPY, Pool
from scripts.novelty_calibration import calibrate, check, synthetic_copies

pytest.importorskip("pylopdf_fonts_zh_cn")


@pytest.fixture(scope="module")
def glyphs(glyph_cache):
    data = glyph_splits(DataOptions(cache_dir=glyph_cache, glyphs=GlyphOptions(limit=300)))
    return {name: np.stack([part.image(i)[..., 0] for i in range(len(part))]) for name, part in data.items()}


@pytest.fixture(scope="module")
def pool(glyphs):
    return Pool(glyphs["train"])


def test_every_kind_of_synthetic_copy_is_found_and_unseen_characters_are_not(glyphs, pool):
    found = check(pool, glyphs["test"], copies=16)
    for kind in ("moved", "bolder", "lighter", "blurred"):
        assert found["copies"][kind]["share"] == 1 and found["copies"][kind]["own_glyph"] == 1, kind
    assert found["false_alarms"]["share"] == 0 and found["threshold"] == COPY


def test_synthetic_copies_are_of_four_kinds_and_two_beyond(glyphs):
    kinds = synthetic_copies(glyphs["train"][:4], seed=1)
    assert list(kinds)[:4] == ["moved", "bolder", "lighter", "blurred"] and len(kinds) == 6
    ink = {name: (255 - images.astype(float)).sum() for name, images in kinds.items()}
    assert ink["lighter"] < ink["moved"] < ink["bolder"]
    assert ink["blurred"] == pytest.approx(ink["moved"], rel=0.01)
    assert all((a == b).all() for a, b in zip(kinds.values(), synthetic_copies(glyphs["train"][:4], seed=1).values()))


def test_calibration_puts_the_threshold_between_copies_and_characters(glyphs, pool):
    threshold, seen = calibrate(pool, glyphs["test"], copies=12)
    least = min(entry["least"] for name, entry in seen["copies"].items() if "," not in name)
    assert seen["unseen"]["99%"] < threshold < least and threshold == seen["threshold"]
    assert seen["false_alarms"]["n"] == len(glyphs["test"])
