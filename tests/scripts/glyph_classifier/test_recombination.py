"""Recombined glyphs hold the components they are labelled with."""

import numpy as np
import torch
from glyph_bars import bars

from ldm.data.glyphs.recombination import lane
from ldm.evaluation.glyphs.classifier import component_labels
from scripts.glyph_classifier import recombination


def cut(glyphs, components):
    labels = component_labels([part for parts in glyphs.parts for part in parts], components)
    return recombination.cut(glyphs.images, glyphs.layouts, glyphs.radicals, glyphs.parts, labels)


def test_parts_know_which_of_them_is_the_radical():
    parts = cut(bars(8), ["日", "忄", "水"])
    assert parts.radical.tolist() == [61, 0, 85, 0] * 4 and parts.picture.tolist() == [i // 2 for i in range(16)]
    assert parts.components[:4].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]]
    top, bottom, left, right = parts.box[0]
    assert (top, bottom, right - left) == (8, 56, 8)


def test_a_part_is_drawn_into_its_target_and_stretched_only_so_far():
    images, box = np.full((2, 64, 64), 255, np.uint8), np.array([[10, 30, 20, 40]] * 2)
    images[:, 10:30, 20:40] = images[:, 50:60, 50:60] = 0
    targets = torch.tensor([[30.0, 50.0, 4.0, 34.0], [0.0, 64.0, 0.0, 64.0]])
    small, large = recombination.place(images, box, targets)[:, 0] > 0.5
    assert small[30:50, 4:34].all() and small.sum() == 20 * 30
    assert large[14:50, 14:50].all() and large.sum() == 36**2, "1.8 times as large, in the middle"


def test_recombined_glyphs_hold_a_radical_and_a_rest_in_both_layouts():
    glyphs, generator = bars(8), torch.Generator().manual_seed(0)
    parts = cut(glyphs, ["日", "忄", "水"])
    ink, across, radical, components = recombination.recombine(glyphs.images, parts, 64, generator)
    assert ink.shape == (64, 1, 64, 64) and ink.min() >= 0 and ink.max() <= 1
    assert set(radical.tolist()) == {61, 85} and 0 < across.sum() < 64
    assert (components == torch.tensor([[1.0, r == 61, r == 85] for r in radical.tolist()])).all()
    for picture, beside in zip(ink[:, 0] > 0.5, across, strict=True):
        assert lane(picture.any(dim=0 if beside else 1).numpy()) is not None
