"""Many random generators at once: for each row of numbers what `np.random.default_rng(row)` draws, to the bit.

Making one costs 20 microseconds, most of a caption. Here the seeds of all rows are hashed together (numpy's
SeedSequence), and a generator (PCG64: O'Neill 2014, pcg-random.org) is a state of 128 bits that draws what captions
mostly need in Python. numpy changes neither: NEP 19.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

MASK32, MASK64, MASK128 = 2**32 - 1, 2**64 - 1, 2**128 - 1
MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645  # of PCG64
POOL = 4  # words of SeedSequence's pool


def generators(rows: Iterable[tuple[int, ...]]) -> Iterator[Any]:
    """A generator for each row of at most four numbers. Use one after the other: they may share what they draw with."""
    every = list(rows)
    if not _small(every):
        yield from map(np.random.default_rng, every)
        return
    shared, seeded = np.random.Generator(np.random.PCG64(0)), seeds(np.array(every, np.uint32))
    yield from map(SampleGenerator, itertools.repeat(shared), seeded.tolist(), first_words(seeded).tolist())


def uniforms(rows: Iterable[tuple[int, ...]]) -> list[float]:
    """The first `random()` of the generator of each row."""
    every = list(rows)
    if not _small(every):
        return [np.random.default_rng(row).random() for row in every]
    return ((first_words(seeds(np.array(every, np.uint32))) >> np.uint64(11)) * 2.0**-53).tolist()


def _small(rows: list[tuple[int, ...]]) -> bool:
    """Whether there are rows, and each number is one word."""
    return bool(rows) and all(max(row) <= MASK32 for row in rows)


class SampleGenerator:
    """A `np.random.Generator`. Single draws of `random` and `integers` are made here, all others by the shared one."""

    __slots__ = ("_first", "_half", "_increment", "_placed", "_seed", "_shared", "_state")

    def __init__(self, shared: np.random.Generator, seed: list[int], first: int):
        self._shared, self._seed = shared, seed
        self._first: int | None = first  # the first word, until it is drawn: many draw no other, or none
        self._state = self._increment = 0  # the latter is odd once there is a state
        self._half: int | None = None  # the second half of a word of which the first was drawn
        self._placed = False  # whether the shared generator stands at this one's state

    def random(self, *args: Any, **options: Any) -> Any:
        if self._placed or args or options:
            return self._generator().random(*args, **options)
        return (self._word() >> 11) * 2.0**-53

    def integers(self, low: Any, *args: Any, **options: Any) -> Any:
        plain = self._first is not None and type(low) is int and 1 < low < MASK32
        if plain and not (self._placed or args or options):
            product = (self._first & MASK32) * low  # type: ignore[operator]  # Lemire 2019, arXiv 1805.10941
            if product & MASK32 >= low:  # else it may be rejected
                self._half = self._word() >> 32
                return product >> 32
        return self._generator().integers(low, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator(), name)

    def _word(self) -> int:
        """The next 64 bits."""
        if self._first is not None:
            word, self._first = self._first, None
            return word
        self._begin()
        self._state = state = (self._state * MULTIPLIER + self._increment) & MASK128
        value, turn = (state >> 64 ^ state) & MASK64, state >> 122
        return (value >> turn | value << (64 - turn)) & MASK64

    def _begin(self) -> None:
        """Make the state, after the first word if that was drawn."""
        if not self._increment:
            high, low, its_high, its_low = self._seed
            self._increment = increment = ((its_high << 64 | its_low) << 1 | 1) & MASK128
            self._state = ((increment + (high << 64 | low)) * MULTIPLIER + increment) & MASK128
            if self._first is None:
                self._state = (self._state * MULTIPLIER + increment) & MASK128

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
                mixed: np.ndarray = np.uint32(0xCA01F9DD) * pool[target] - np.uint32(0x4973F715) * mixing(pool[source])
                pool[target] = mixed ^ mixed >> np.uint32(16)
    output = _Hash(0x8B51F9DD, 0x58F38DED)
    halves: list[np.ndarray] = [output(pool[i % POOL]).astype(np.uint64) for i in range(2 * POOL)]
    return np.stack([halves[2 * i] | halves[2 * i + 1] << np.uint64(32) for i in range(POOL)], 1)


def first_words(seeded: np.ndarray) -> np.ndarray:
    """The first 64 bits (n,) that PCG64 draws with each of these seeds (n, 4)."""
    one, high = np.uint64(1), np.uint64(63)
    increment = seeded[:, 2] << one | seeded[:, 3] >> high, seeded[:, 3] << one | one
    state = _sum(_product(_sum(increment, (seeded[:, 0], seeded[:, 1]))), increment)
    upper, lower = _sum(_product(state), increment)
    value, turn = upper ^ lower, upper >> np.uint64(58)
    return value >> turn | value << (np.uint64(64) - turn & high)


Words = tuple[np.ndarray, np.ndarray]  # the upper and the lower half of numbers of 128 bits


def _sum(one: Words, other: Words) -> Words:
    lower = one[1] + other[1]
    return one[0] + other[0] + (lower < one[1]).astype(np.uint64), lower


def _product(numbers: Words) -> Words:
    """Times PCG64's multiplier, by halves of 32 bits."""
    half, mask = np.uint64(32), np.uint64(MASK32)
    upper, lower = np.uint64(MULTIPLIER >> 64), np.uint64(MULTIPLIER & MASK64)
    (a, b), (c, d) = (numbers[1] >> half, numbers[1] & mask), (lower >> half, lower & mask)
    middle = (b * d >> half) + (a * d & mask) + (b * c & mask)
    carried = a * c + (a * d >> half) + (b * c >> half) + (middle >> half)
    return carried + numbers[0] * lower + numbers[1] * upper, numbers[1] * lower
