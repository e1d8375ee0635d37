import hashlib
from collections import Counter

import pytest

from ldm.data.glyphs.captions import RADICALS
from ldm.data.glyphs.dataset import load_table
from ldm.data.glyphs.heldout import HELD_OUT, LATER, PLACES_HELD_OUT, held_out, may_be_shown
from ldm.data.glyphs.names import OPPOSITE, PLACES, name_of, parts_of


def by_hash(kind, candidates):
    return sorted(candidates, key=lambda pair: hashlib.sha256(f"ldm {kind} {pair[0]} {pair[1]}".encode()).hexdigest())


def first_of_each(ordered, count):
    chosen = {}
    for key, value in ordered:
        chosen.setdefault(key, value)
    return set(list(chosen.items())[:count])


def test_the_later_pairs_follow_from_the_rule():
    pairs = Counter((row.radical, row.structure) for row in load_table())
    radicals = Counter(row.radical for row in load_table())
    first = {radical for radical, _ in HELD_OUT}
    candidates = [
        (radical, layout)
        for (radical, layout), count in pairs.items()
        if layout in PLACES and 4 <= count <= 14 and radicals[radical] - count >= 40 and radical not in first
    ]
    assert first_of_each(by_hash("pair", candidates), 15) == set(LATER)


def test_the_held_out_places_follow_from_the_rule():
    counts = Counter(
        (name_of(part, place, row.radical), place)
        for row in load_table()
        for part, place in parts_of(row.char, row.structure)
        if len(part) == 1
    )
    totals = Counter()
    for (name, _), count in counts.items():
        totals[name] += count
    of_pairs = {RADICALS[radical - 1] for radical, _ in HELD_OUT + LATER}
    candidates = [
        (name, place)
        for name in totals
        for place in OPPOSITE
        if name and totals[name] >= 30 and 1 <= counts[name, place] <= 9 and name not in of_pairs
    ]
    assert first_of_each(by_hash("place", candidates), 30) == set(PLACES_HELD_OUT)


@pytest.mark.parametrize(
    "component, name, layout, place, shown",
    [
        ("\u5973", "woman", "vertical", "bottom", False),
        ("\u5973", "woman", "horizontal", "left", True),
        ("\u624c", "hand", "vertical", "top", False),  # in any form
        ("\u6c34", "water", "vertical", "top", True),
        ("\u6708", "moon", "vertical", "bottom", False),  # it is flesh too
        ("\u706b", "fire", "vertical", "top", False),
        ("\u706b", "fire", "vertical", "bottom", True),
    ],
)
def test_what_may_be_shown(component, name, layout, place, shown):
    assert may_be_shown(component, name, layout, place) == shown


def test_held_out_pairs_are_known():
    assert held_out(38, "vertical") and held_out(18, "vertical") and not held_out(85, "vertical")
