"""Ends a training whose processes wait for one another in vain, and says for which.

A process that waits in a collective sees neither a signal nor that another process failed, hangs or is gone. So a
thread in each one tells the others over torch's store, every second, that it is alive and where its training is. That
of the main process judges; every other follows it, and notices when it is gone.

* An error in one process ends all, each with a line that has the process and the error.
* A signal to one process is a signal to all. Who waits in vain after it is ended, `GRACE` seconds later
  (`FIRST_GRACE` in the first step, before which nothing says how long one takes).
* A process without a sign of life for `GONE` seconds (`GONE_ALONE` beside work that may keep it silent) is named.
* Where nobody gets on for `train.hang_minutes`, those furthest behind are named, and all are ended.
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from torch import distributed

from ldm.utils.runtime import INTERRUPTS

BEAT = 1.0  # seconds between two signs of life
GONE, GONE_ALONE = 10.0, 120.0  # seconds
GRACE = 8.0  # seconds from a signal on, or three times the longest stretch so far where that is more
FIRST_GRACE = 60.0  # in the first step of a process, which also chooses kernels, compiles and makes the moments
YIELD = 3.0  # seconds that the main thread has to end by itself, with its own line and its files closed
SIGNAL, END = "signal", "end"  # keys of the store
EVERYBODY = -1  # whom an end is due to, if to no process alone


@dataclass(frozen=True)
class Place:
    """Where a training is: its step, what it does there, and whether the others may have to wait for it.

    Attributes:
        number: of places before this one, in this process.
        order: of the places of one step.
        alone: work of one process, such as building a cache: there is no limit on it.
        uncut: likewise, and a signal waits for its end, as for a checkpoint that is being written.
    """

    text: str = "starting"
    step: int = 0
    order: int = 0
    alone: bool = True
    uncut: bool = False
    number: int = 0


@dataclass
class Seen:
    """The last sign of life of a process, and since when (`time.monotonic`) it is there; `left`: it ended well."""

    host: str = ""
    place: Place = field(default_factory=Place)
    beat: int = -1
    alive: float = 0.0
    moved: float = 0.0
    left: bool = False

    @property
    def gone(self) -> bool:
        return not self.left and time.monotonic() - self.alive > (GONE_ALONE if self.place.alone else GONE)


class Watchdog(threading.Thread):
    """The thread; `enter` is for the main thread.

    Args:
        store: of the process group, for this thread alone.
        kill: ends this process with a line and an exit code.
    """

    def __init__(self, store: distributed.Store, rank: int, world: int, kill: Callable[[str, int], None] | None = None):
        super().__init__(daemon=True, name="watchdog")
        self.store, self.rank, self.world, self.kill = store, rank, world, kill or _exit
        self.hang_seconds = float("inf")  # until the training has begun
        self.place, self.entered, self.longest = Place(), time.monotonic(), 0.0
        self.first: int | None = None  # the first step that this process takes
        self.beat, self.left = 0, False
        now = time.monotonic()
        self.seen = {rank: Seen(alive=now, moved=now) for rank in (range(world) if rank == 0 else (0,))}
        self.signal, self.signalled = 0, 0.0  # its number and when it came
        self.end: dict | None = None  # why all have to end
        self.ended = 0.0
        self._reads, self._writes = socket.socketpair()  # of which Windows can wait, and of pipes it cannot
        self._reads.setblocking(False)
        self._writes.setblocking(False)
        self._reading = threading.Lock()
        self._finished = threading.Event()
        self._talker = threading.Thread(target=self._talk, daemon=True, name="watchdog-store")

    # ---- for the main thread ----------------------------------------------------------------------------------------

    def enter(self, text: str, step: int = 0, order: int = 0, alone: bool = False, uncut: bool = False) -> None:
        """Say where the training is from now on."""
        now = time.monotonic()
        if not self.place.alone:
            self.longest = max(self.longest, now - self.entered)
        if self.first is None and not alone:
            self.first = step
        self.place, self.entered = Place(text, step, order, alone, uncut, self.place.number + 1), now

    def report(self, text: str, code: int = 2) -> None:
        """Tell the others what ends this process, and so all of them."""
        with suppress(RuntimeError):  # the store is gone: there is nobody to tell
            if not self.store.check([END]):
                self._publish({"rank": self.rank, "host": socket.gethostname(), "text": text, "code": code})
        if self.rank == 0:
            time.sleep(2 * BEAT)  # the store ends with this process

    def reason(self, seconds: float) -> str | None:
        """What ended another process, after at most so many seconds; None if nobody said so."""
        until = time.monotonic() + seconds
        while self.end is None and time.monotonic() < until and self.is_alive():
            time.sleep(0.1)
        return None if self.end is None or self.end["rank"] == self.rank else told(self.end, self.world)

    def listen(self) -> None:
        """Have Python's signals reach this thread while the main thread waits in a collective."""
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._writes.fileno(), warn_on_full_buffer=False)

    def stop(self) -> None:
        """Leave the others: this process has done its part."""
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
        self.left = True
        self._finished.set()
        self._talker.join(timeout=5)

    # ---- the thread -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self._talker.start()
        last = time.monotonic()
        while not self._finished.is_set():
            now = time.monotonic()
            if now - last > GONE / 2:  # this process itself stood still: the others may have spoken
                self._excuse(now)
            last = now
            if self.end is None and (reason := self._gone()):
                self._end(reason)
            self._obey()
            self._hear(BEAT)

    def _talk(self) -> None:
        """Speak and listen over the store, in a thread of its own: it stays there if the main process is frozen."""
        while not self._finished.is_set():
            with suppress(RuntimeError):  # the store's process is gone: that will show
                self._tick()
            self._finished.wait(BEAT)
        with suppress(RuntimeError):
            self._say()

    def _tick(self) -> None:
        self._say()
        if self.end is None and self.store.check([END]):
            self._end(json.loads(self.store.get(END)))
        if self.signal and not self.store.check([SIGNAL]):
            self.store.set(SIGNAL, str(self.signal))
        elif not self.signal and self.store.check([SIGNAL]):
            self._pass_on(int(self.store.get(SIGNAL)))
        self._look()
        if self.end is None and self.rank == 0 and (reason := self._gone() or self._judge()):
            self._publish(reason)
            self._end(reason)

    def _say(self) -> None:
        self.beat += 1
        words = {"beat": self.beat, "host": socket.gethostname(), "left": self.left, "place": self.place.__dict__}
        self.store.set(f"alive-{self.rank}", json.dumps(words))

    def _look(self) -> None:
        """Note what the others last said, by this process's own clock."""
        names = {rank: f"alive-{rank}" for rank in self.seen}
        known = [rank for rank, name in names.items() if self.store.check([name])]
        now = time.monotonic()
        for rank, value in zip(known, self.store.multi_get([names[rank] for rank in known]), strict=True):
            words, seen = json.loads(value), self.seen[rank]
            if words["beat"] != seen.beat:
                seen.beat, seen.alive, seen.host, seen.left = words["beat"], now, words["host"], words["left"]
            place = Place(**words["place"])
            if place != seen.place:
                seen.place, seen.moved = place, now

    def _hear(self, seconds: float) -> None:
        """Wait, and note a signal that Python's handler will see only when the main thread runs again."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._finished.is_set():
            if select.select([self._reads], [], [], min(left, 0.2))[0]:
                self._note_signals()

    def _note_signals(self) -> None:
        with self._reading, suppress(BlockingIOError):
            numbers = [number for number in self._reads.recv(64) if number in INTERRUPTS]
            if numbers and not self.signal:
                self.signal, self.signalled = numbers[0], time.monotonic()

    def _pass_on(self, number: int) -> None:
        """Another process was sent a signal: so is this one, as if it had come from outside, unless it has."""
        self._note_signals()
        if not self.signal:
            self.signal, self.signalled = number, time.monotonic()
            os.kill(os.getpid(), number)

    def _gone(self) -> dict | None:
        """Which process has no sign of life."""
        for rank, seen in self.seen.items():
            if seen.gone and rank != self.rank:
                text = f"no sign of life for {time.monotonic() - seen.alive:.0f} s: it hangs, or was ended"
                return {"rank": rank, "host": seen.host, "text": text, "code": 2}
        return None

    def _excuse(self, now: float) -> None:
        for seen in self.seen.values():
            seen.alive = seen.moved = now

    def _judge(self) -> dict | None:
        """Why all have to end though all are alive; main process only."""
        now = time.monotonic()
        here = {rank: seen for rank, seen in self.seen.items() if not seen.left}
        still = now - max((seen.moved for seen in here.values()), default=now)
        grace = max(FIRST_GRACE if self.place.step == self.first else GRACE, 3 * self.longest)
        if self.signal and min(still, now - self.signalled) > grace and not any(s.place.uncut for s in here.values()):
            text = f"{signal.Signals(self.signal).name}, and nobody got on in {grace:.0f} s: {behind(here)}"
            return {"rank": EVERYBODY, "text": f"{text}; ended without a checkpoint of that step", "code": 0}
        if still > self.hang_seconds and not any(seen.place.alone for seen in here.values()):
            limit = f"train.hang_minutes {self.hang_seconds / 60:g}"
            return {"rank": EVERYBODY, "text": f"nobody got on in {limit}: {behind(here)}", "code": 2}
        return None

    def _publish(self, reason: dict) -> None:
        self.store.set(END, json.dumps(reason))

    def _end(self, reason: dict) -> None:
        self.end, self.ended = reason, time.monotonic()

    def _obey(self) -> None:
        """End this process, if its main thread has not done so by itself."""
        if self.end is not None and self.end["rank"] != self.rank and time.monotonic() - self.ended > YIELD:
            self.kill(told(self.end, self.world), self.end["code"] or 128 + self.signal)


def told(reason: dict, world: int) -> str:
    """The line on what ended a world of so many processes."""
    if reason["rank"] == EVERYBODY:
        return reason["text"]
    return f"process {reason['rank'] + 1} of {world} on {reason['host']}: {reason['text']}"


def behind(seen: dict[int, Seen]) -> str:
    """Which processes are furthest behind, and where; where all are if nobody is."""
    at = {rank: (one.place.step, one.place.order) for rank, one in seen.items()}
    last = min(at.values())
    if last == max(at.values()):
        return f"all {len(seen)} processes are at step {last[0]}, {next(iter(seen.values())).place.text}"
    late = [rank for rank in seen if at[rank] == last]
    named = ", ".join(f"process {rank + 1} on {seen[rank].host}" for rank in late[:8])
    return f"{named} did not get past step {last[0]}, {seen[late[0]].place.text}"


def _exit(text: str, code: int) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)
    os._exit(code)
