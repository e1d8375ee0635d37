"""Each distance grows, and coverage falls, as real glyphs are corrupted more and more: numbers, not pixels."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pylopdf_fonts_zh_cn")

from ldm.apps.figures.metric_sensitivity import GRADES, corrupt, curves
from ldm.evaluation.glyphs.classifier import GlyphClassifier


@pytest.fixture(scope="module")
def real(glyph_cache):
    from ldm.config.settings import DataOptions, GlyphOptions
    from ldm.data.glyphs.dataset import splits

    options = GlyphOptions(styles=["hei"], limit=900)
    data = splits(DataOptions(glyphs=options, cache_dir=glyph_cache))["train"]
    images = np.stack([data.image(i)[..., 0] for i in range(len(data))])
    return images, np.array([data.meta(i)["structure"] for i in range(len(data))])


def test_the_first_grade_is_nothing_and_sets_are_of_one_size(real):
    images, layouts = real
    for kind, one in corrupt(images, layouts, 50).items():
        assert len({x.shape for x in one.sets}) == 1 and len(one.sets) == len(one.grades), kind
        assert (one.sets[0] == images[: len(one.sets[0])]).all(), kind


def test_dropping_leaves_the_commonest_layouts():
    images = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 64, 64), np.uint8)
    dropped = corrupt(images, ["a", "b", "a", "c", "b", "a"], 6, (9, 2, 1))["layouts dropped"]
    assert [x[:, 0, 0].tolist() for x in dropped.sets] == [[0, 1, 2], [0, 1, 2], [0, 2, 5]]
    assert dropped.grades == pytest.approx([0, 1 / 3, 2 / 3])


@pytest.mark.slow
def test_every_distance_grows_and_coverage_falls_with_each_grade(real):
    """A step of noise or blur that the classifier was trained to overlook may be within the error of measurement."""
    images, layouts = real
    corrupted = corrupt(images[400:], layouts[400:], 300)
    found = curves(corrupted, images[:400], GlyphClassifier().embed)
    for kind, measures in found.items():
        for name in ("fd", "kid", "mmd", "sliced"):
            values = np.array(measures[name])
            assert (np.diff(values) > -0.01 * values[-1]).all(), (kind, name, values)
            assert values[-1] > 1.3 * values[0] + 0.01 * abs(values[-1]), (kind, name, values)
        coverage = np.array(measures["coverage"])
        # Dropping layouts costs a tenth of the coverage at most: what is left are the commonest, most of all glyphs.
        assert (np.diff(coverage) < 0.02).all() and coverage[-1] < 0.95 * coverage[0], (kind, coverage)
    assert set(found) == {*GRADES, "layouts dropped"}
