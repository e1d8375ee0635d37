"""Every measure of adherence falls from its ceiling to its floor as real glyphs lose their own captions."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pylopdf_fonts_zh_cn")

from ldm.apps.figures.adherence_baseline import SHARES, falling, partly_permuted
from ldm.evaluation.glyphs.adherence import Scorer, permuted, prompt_specs
from ldm.evaluation.glyphs.classifier import GlyphClassifier
from ldm.evaluation.glyphs.prompts import PromptSpec
from ldm.evaluation.glyphs.samples import glyph_images
from ldm.evaluation.glyphs.style_probe import StyleProbe


def test_only_the_share_that_is_dealt_changes_and_no_caption_is_lost():
    asked = [PromptSpec("character", f"p{i}") for i in range(40)]
    rng = np.random.default_rng(0)
    assert partly_permuted(asked, 0.0, rng) == asked
    half = partly_permuted(asked, 0.5, rng)
    assert sorted(one.prompt for one in half) == sorted(one.prompt for one in asked)
    assert 10 <= sum(a != b for a, b in zip(asked, half, strict=True)) <= 20


def test_each_measure_falls_to_its_floor(glyph_cache):
    from ldm.config.settings import DataOptions, GlyphOptions
    from ldm.data.glyphs.dataset import splits

    data = splits(DataOptions(glyphs=GlyphOptions(limit=1500), cache_dir=glyph_cache))
    train, test = data["train"], data["test"]
    probe = StyleProbe(glyph_images(train, range(200)), [train.meta(i)["style"] for i in range(200)])
    judge, asked = Scorer(GlyphClassifier(), probe), prompt_specs(test)
    judged = judge(glyph_images(test))
    found = falling(judge, judged, asked, permutations=4)
    rng = np.random.default_rng(1)
    floor = judge.scores(judged, permuted(asked, rng))
    for name, values in found.items():
        sign = -1 if name == "strokes_error" else 1
        assert (np.diff(sign * np.array(values)) < 0).all(), (name, values)
        assert abs(values[-1] - np.nanmean(floor[name])) < 0.25 * abs(values[0] - values[-1]), (name, values)
        if name != "strokes_error":  # halfway down when half are dealt: agreement is linear in the share
            assert values[2] == pytest.approx((values[0] + values[-1]) / 2, abs=0.06), (name, values)
    assert len(SHARES) == len(found["layout"])
