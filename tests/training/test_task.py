"""The captions that a step draws, each by a generator of its own: numpy's, to the bit."""

import numpy as np
import pytest

from ldm.training.sample_generators import generators, seeds
from ldm.training.task import SampleRef, captions_of


class Told:
    """Data whose caption says what it was given."""

    def caption(self, i, rng):
        return f"{i} {rng.integers(10**9)} {rng.random()} {rng.permutation(5)}"


def test_seeds_are_those_of_numpy():
    rows = np.random.default_rng(0).integers(0, 2**32, (50, 4), np.uint32)
    for width in (1, 2, 3, 4):
        theirs = [np.random.SeedSequence(row[:width].tolist()).generate_state(4, np.uint64) for row in rows]
        np.testing.assert_array_equal(seeds(rows[:, :width]), theirs)


@pytest.mark.parametrize("row", [(0, 3, 0, 0), (2**31 - 1, 4, 5, 6), (7,), (1, 2), (0, 3, 1, 2**32), (2**40, 1)])
def test_any_sequence_of_draws_is_that_of_numpy(row):
    ours, theirs, chosen = next(generators([row])), np.random.default_rng(row), np.random.default_rng(1)
    draws = [lambda g: g.random(), lambda g: g.integers(int(chosen.choice([1, 2, 3, 1000, 2**31, 2**32 - 2, 2**40])))]
    others = [lambda g: g.permutation(6).tolist(), lambda g: g.random(3).tolist(), lambda g: g.integers(2, 9)]
    for count in range(300):
        draw = chosen.choice(draws if count < 200 else draws + others)
        state = chosen.bit_generator.state
        own = draw(ours)
        chosen.bit_generator.state = state
        assert own == draw(theirs), count


def test_many_generators_are_as_many_of_numpys():
    rows = [(5, 3, epoch, index) for epoch in range(3) for index in range(100)]
    found = [(g.random(), g.integers(3), g.choice(9)) for g in generators(rows)]
    assert found == [(g.random(), g.integers(3), g.choice(9)) for g in map(np.random.default_rng, rows)]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_caption_is_a_function_of_seed_epoch_and_item(dropout):
    items = [(Told(), SampleRef(index, epoch)) for epoch in (0, 2) for index in range(20)]
    expected = []
    for data, one in items:
        dropped = np.random.default_rng([7, 4, one.epoch, one.index]).random() < dropout
        rng = np.random.default_rng([7, 3, one.epoch, one.index])
        expected.append("" if dropped else data.caption(one.index, rng))
    assert captions_of(items, 7, dropout) == expected
    assert captions_of(items[3:4], 7, dropout) == expected[3:4]
    assert captions_of([], 7, dropout) == []
