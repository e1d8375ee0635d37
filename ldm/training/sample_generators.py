"""Many random generators, one after the other, without the price of making each."""

from collections.abc import Iterable, Iterator

import numpy as np


def generators(key: tuple[int, int], places: Iterable[tuple[int, int]]) -> Iterator[np.random.Generator]:
    """A generator for each place of two numbers below 2**64. They are one object: use it before you ask for the next.

    Philox4x64 is a function of a key and a counter of four words (Salmon et al. 2011, SC'11), so a place in the
    counter's upper half is a stream of 2**128 blocks, and to change it costs a tenth of making a generator.
    """
    bits = np.random.Philox(key=np.array(key, np.uint64))
    rng, state = np.random.Generator(bits), bits.state
    counter = state["state"]["counter"]
    for place in places:
        counter[2:] = place
        bits.state = state
        yield rng
