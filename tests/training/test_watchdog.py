"""Whom the watchdog names and when, from what the processes said; tests/faults/test_worlds.py has real ones."""

import json
import signal
import time

import pytest
from torch.distributed import HashStore

from ldm.training.watchdog import END, FIRST_GRACE, GONE, GONE_ALONE, GRACE, YIELD, Place, Seen, Watchdog, behind, told

STEP = Place("loading data", 5, 1, alone=False)
LATER = Place("forward and backward", 5, 2, alone=False)


def watchdog(*places: Place, still: float = 0.0, silent: float = 0.0, rank: int = 0) -> tuple[Watchdog, list]:
    """One that is not started, of processes at these places for so many seconds; and what it ended."""
    ended = []
    dog = Watchdog(HashStore(), rank, len(places), kill=lambda text, code: ended.append((text, code)))
    now = time.monotonic()
    for number in dog.seen:
        dog.seen[number] = Seen(f"host{number}", places[number], 1, now - silent * (number == 1), now - still)
    return dog, ended


def test_those_furthest_behind_are_named():
    seen = {0: Seen("a", LATER), 1: Seen("b", STEP), 2: Seen("c", LATER), 3: Seen("d", STEP)}
    assert behind(seen) == "process 2 on b, process 4 on d did not get past step 5, loading data"
    assert behind({0: Seen("a", LATER), 1: Seen("b", LATER)}) == "all 2 processes are at step 5, forward and backward"


def test_nobody_is_ended_within_the_limit_nor_beside_work_of_one():
    dog, _ = watchdog(LATER, STEP, still=59)
    dog.hang_seconds = 60
    assert dog._judge() is None
    dog, _ = watchdog(LATER, STEP, still=61)
    assert dog._judge() is None  # no limit before the training
    dog.hang_seconds = 60
    assert dog._judge()["text"].startswith("nobody got on in train.hang_minutes 1: process 2 on host1")
    dog.seen[0].place = Place("reporting", 5, 9, alone=True)
    assert dog._judge() is None


@pytest.mark.parametrize("uncut", [False, True])
def test_a_signal_waits_for_what_must_not_be_cut_and_for_nothing_else(uncut):
    dog, ended = watchdog(Place("validating", 5, 9, alone=True, uncut=uncut), STEP, still=GRACE + 1)
    assert dog._judge() is None
    dog.signal, dog.signalled = signal.SIGTERM, time.monotonic() - GRACE - 1
    assert (dog._judge() is None) == uncut
    dog.longest = GRACE  # steps take long here
    assert dog._judge() is None
    if not uncut:
        dog.longest = 0.0
        dog._end(dog._judge())
        dog._obey()
        assert not ended  # the main thread may end by itself
        dog.ended -= YIELD
        dog._obey()
        assert ended[0][1] == 128 + signal.SIGTERM and "SIGTERM, and nobody got on" in ended[0][0]


def test_a_signal_waits_longer_in_the_first_step():
    """Which may compile, and takes longer than any that was measured."""
    dog, _ = watchdog(LATER, STEP, still=FIRST_GRACE - 1)
    dog.enter("validating", 5, alone=True)
    dog.enter("loading data", 5)
    dog.signal, dog.signalled = signal.SIGTERM, time.monotonic() - FIRST_GRACE - 1
    assert dog._judge() is None
    dog.seen[0].moved = dog.seen[1].moved = time.monotonic() - FIRST_GRACE - 1
    assert "nobody got on in 60 s" in dog._judge()["text"]
    dog.enter("loading data", 6)
    dog.seen[0].moved = dog.seen[1].moved = time.monotonic() - GRACE - 1
    assert "nobody got on in 8 s" in dog._judge()["text"]


def test_who_is_silent_is_gone_later_beside_work_of_one():
    assert watchdog(LATER, STEP, silent=GONE - 1)[0]._gone() is None
    reason = watchdog(LATER, STEP, silent=GONE + 1)[0]._gone()
    assert told(reason, 2).startswith("process 2 of 2 on host1: no sign of life for 11 s")
    alone = Place("writing a checkpoint", 5, 9, alone=True)
    assert watchdog(LATER, alone, silent=GONE + 1)[0]._gone() is None
    assert watchdog(LATER, alone, silent=GONE_ALONE + 1)[0]._gone()
    dog, _ = watchdog(LATER, STEP, silent=GONE + 1)
    dog.seen[1].left = True
    assert dog._gone() is None
    dog, _ = watchdog(LATER, STEP, silent=GONE + 1)
    dog._excuse(time.monotonic())  # this process itself stood still
    assert dog._gone() is None


def test_processes_hear_of_each_other():
    store = HashStore()
    main, other = Watchdog(store, 0, 2), Watchdog(store, 1, 2)
    other.enter("loading data", 7, 1)
    other._tick(), main._tick(), other._tick()
    assert main.seen[1].place.text == "loading data" and main.seen[1].place.step == 7 and other.seen[0].host
    other.report("cannot write to x")
    main._tick()
    assert main.end["rank"] == 1 and json.loads(store.get(END))["text"] == "cannot write to x"
    assert main.reason(0.0).endswith(": cannot write to x") and other.reason(0.0) is None


def test_a_signal_to_one_reaches_the_others_once(monkeypatch):
    sent, store = [], HashStore()
    monkeypatch.setattr("os.kill", lambda pid, number: sent.append(number))
    main, other = Watchdog(store, 0, 2), Watchdog(store, 1, 2)
    main.signal = signal.SIGTERM
    for dog in (main, other, main, other):
        dog._tick()
    assert sent == [signal.SIGTERM] and other.signal == signal.SIGTERM
    own = Watchdog(store, 1, 2)
    own._writes.send(bytes([signal.SIGTERM]))  # as Python does for a signal of its own
    own._tick()
    assert sent == [signal.SIGTERM] and own.signal == signal.SIGTERM
