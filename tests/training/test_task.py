"""The captions that a step draws, each by a generator of its own."""

import numpy as np

from ldm.training.task import LazyGenerator, SampleRef, caption_of


class Told:
    """Data whose caption says what it was given."""

    def caption(self, i, rng):
        return f"{i} {rng.integers(10**9)}"


def test_a_generator_is_made_when_it_is_used_and_is_numpys():
    lazy, plain = LazyGenerator(0, 3, 1, 5), np.random.default_rng([0, 3, 1, 5])
    assert "_generator" not in vars(lazy)
    assert lazy.integers(10**9) == plain.integers(10**9)
    assert lazy.permutation(9).tolist() == plain.permutation(9).tolist()


def test_a_caption_is_a_function_of_seed_epoch_and_item():
    number = np.random.default_rng([7, 3, 2, 4]).integers(10**9)
    assert caption_of(Told(), SampleRef(4, 2), 7) == f"4 {number}"
