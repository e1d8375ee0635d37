"""Many random generators at once: for each row of numbers what `np.random.default_rng(row)` draws, to the bit.

Making one costs 20 microseconds, most of a caption. Here the seeds of all rows are hashed together (numpy's
SeedSequence), and a generator (PCG64: O'Neill 2014, pcg-random.org) is a state of 128 bits that draws what captions
mostly need in Python. numpy changes neither: NEP 19.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

MASK32, MASK64, MASK128 = 2**32 - 1, 2**64 - 1, 2**128 - 1
MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645  # of PCG64
POOL = 4  # words of SeedSequence's pool


def generators(rows: Iterable[tuple[int, ...]]) -> Iterator[Any]:
    """A generator for each row of at most four numbers. Use one after the other: they may share what they draw with."""
    every = list(rows)
    if not every or any(number > MASK32 for row in every for number in row):  # two words each
        yield from map(np.random.default_rng, every)
        return
    shared = np.random.Generator(np.random.PCG64(0))
    for seed in seeds(np.array(every, np.uint32)).tolist():
        yield SampleGenerator(shared, seed)


class SampleGenerator:
    """A `np.random.Generator`. Single draws of `random` and `integers` are made here, all others by the shared one."""

    __slots__ = ("_half", "_increment", "_placed", "_seed", "_shared", "_state")

    def __init__(self, shared: np.random.Generator, seed: list[int]):
        self._shared, self._seed = shared, seed
        self._state = self._increment = 0  # the latter is odd once there is a state: many are never used
        self._half: int | None = None  # the second half of a word of which the first was drawn
        self._placed = False  # whether the shared generator stands at this one's state

    def random(self, *args: Any, **options: Any) -> Any:
        if self._placed or args or options:
            return self._generator().random(*args, **options)
        return (self._word() >> 11) * 2.0**-53

    def integers(self, low: Any, *args: Any, **options: Any) -> Any:
        plain = isinstance(low, int) and 1 < low < MASK32 and self._half is None
        if plain and not (self._placed or args or options):
            self._begin()
            before, word = self._state, self._word()
            product = (word & MASK32) * low  # Lemire 2019, arXiv 1805.10941
            if product & MASK32 >= low:  # else it may be rejected
                self._half = word >> 32
                return product >> 32
            self._state = before
        return self._generator().integers(low, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator(), name)

    def _word(self) -> int:
        """The next 64 bits."""
        self._begin()
        self._state = state = (self._state * MULTIPLIER + self._increment) & MASK128
        value, turn = (state >> 64 ^ state) & MASK64, state >> 122
        return (value >> turn | value << (64 - turn)) & MASK64

    def _begin(self) -> None:
        if not self._increment:
            high, low, its_high, its_low = self._seed
            self._increment = increment = ((its_high << 64 | its_low) << 1 | 1) & MASK128
            self._state = ((increment + (high << 64 | low)) * MULTIPLIER + increment) & MASK128

    def _generator(self) -> np.random.Generator:
        if not self._placed:
            self._begin()
            numbers = {"state": self._state, "inc": self._increment}
            buffered = {"has_uint32": int(self._half is not None), "uinteger": self._half or 0}
            self._shared.bit_generator.state = {"bit_generator": "PCG64", "state": numbers} | buffered
            self._placed = True
        return self._shared


class _Hash:
    """SeedSequence's hash of words, whose constant moves on with each."""

    def __init__(self, constant: int, multiplier: int):
        self.constant, self.multiplier = constant, multiplier

    def __call__(self, words: np.ndarray) -> np.ndarray:
        words = words ^ np.uint32(self.constant)
        self.constant = self.constant * self.multiplier & MASK32
        words = words * np.uint32(self.constant)
        return words ^ words >> np.uint32(16)


def seeds(words: np.ndarray) -> np.ndarray:
    """(n, 4): what `np.random.SeedSequence(row).generate_state(4, np.uint64)` gives for each row of at most 4 words."""
    mixing = _Hash(0x43B0D7E5, 0x931E8875)
    empty: np.ndarray = np.zeros(len(words), np.uint32)
    pool = [mixing(words[:, i] if i < words.shape[1] else empty) for i in range(POOL)]
    for source in range(POOL):
        for target in range(POOL):
            if source != target:
                mixed = np.uint32(0xCA01F9DD) * pool[target] - np.uint32(0x4973F715) * mixing(pool[source])
                pool[target] = mixed ^ mixed >> np.uint32(16)
    output = _Hash(0x8B51F9DD, 0x58F38DED)
    halves: list[np.ndarray] = [output(pool[i % POOL]).astype(np.uint64) for i in range(2 * POOL)]
    return np.stack([halves[2 * i] | halves[2 * i + 1] << np.uint64(32) for i in range(POOL)], 1)
