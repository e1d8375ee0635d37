"""The captions that a step draws, each by a generator of its own: that of its place."""

import numpy as np
import pytest

from ldm.training.sample_generators import generators
from ldm.training.task import SampleRef, captions_of


class Told:
    """Data whose caption says what it was given."""

    def caption(self, i, rng):
        return f"{i} {rng.integers(10**9)} {rng.random()} {rng.permutation(5)}"


def philox(key, place):
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, *place]))


def test_a_generator_for_each_place_whatever_was_drawn_before():
    places = [(epoch, index) for epoch in (0, 2, 2**40) for index in (0, 1, 2**63)]
    for rng, place in zip(generators((5, 3), places), places, strict=True):
        theirs = philox((5, 3), place)
        assert rng.integers(3) == theirs.integers(3)  # leaves half a word behind
        assert (rng.random(place[1] % 5) == theirs.random(place[1] % 5)).all()
        assert rng.permutation(9).tolist() == theirs.permutation(9).tolist()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_caption_is_a_function_of_seed_epoch_and_item(dropout):
    items = [(Told(), SampleRef(index, epoch)) for epoch in (0, 2) for index in range(20)]
    expected = []
    for data, one in items:
        rng = philox((7, 3), (one.epoch, one.index))
        expected.append("" if dropout and rng.random() < dropout else data.caption(one.index, rng))
    assert captions_of(items, 7, dropout) == expected
    assert captions_of(items[3:4], 7, dropout) == expected[3:4]
    assert captions_of([], 7, dropout) == []
