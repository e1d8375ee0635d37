"""What is shown while something takes its time: on a terminal one live line, elsewhere a line now and then."""

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Self, TypeVar

REFRESH = 0.1  # seconds between two states of the live line
PLAIN = 30.0  # seconds between two lines where there is none
T = TypeVar("T")


class LiveLine:
    """The last line of a terminal, for progress; whatever else is printed there has to `clear` it first."""

    def __init__(self, stream: IO[str] | None = None):
        self._stream = stream or sys.stderr
        self.visible = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = 0.0

    def show(self, text: str, now: bool = False) -> None:
        """Replace the line, at most ten times a second, or `now`; what is too long for the terminal is cut."""
        due = now or time.monotonic() - self._shown >= REFRESH
        if self.visible and due:
            self._shown = time.monotonic()
            self._write("\r\033[K" + text[: shutil.get_terminal_size().columns - 1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def clear(self) -> None:
        if self.visible and self._shown:
            self._shown = 0.0
            self._write("\r\033[K")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class Count:
    """How many of a known number of things are done: a bar on a terminal, elsewhere a line every half minute.

    What is done within the first half minute leaves no line in a file.

    Args:
        what: 'encoding'. unit: of the things, in the plural. quiet: show nothing.
    """

    def __init__(self, what: str, total: int, unit: str = "images", stream: IO[str] | None = None, quiet: bool = False):
        self._what, self._total, self._unit, self._quiet = what, total, unit, quiet
        self._stream = stream or sys.stderr
        self._live = LiveLine(self._stream)
        self._done, self._start = 0, time.monotonic()
        self._said = self._start

    def add(self, number: int = 1) -> None:
        """So many more are done."""
        self._done += number
        if self._quiet:
            return
        now = time.monotonic()
        if self._live.visible:
            self._live.show(f"{self._what} {bar(self._done, self._total)}  {self._left(now)} left")
        elif now - self._said >= PLAIN:
            self._said = now
            done = f"{self._done:,} of {self._total:,} {self._unit}"
            print(f"{self._what}: {done}, about {self._left(now)} left", file=self._stream, flush=True)

    def _left(self, now: float) -> str:
        return duration_text((now - self._start) / self._done * (self._total - self._done))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._live.clear()


def counted(things: Iterable[T], what: str, total: int, unit: str = "images") -> Iterator[T]:
    """The things as they are, with a `Count` of those that were used."""
    with Count(what, total, unit) as count:
        for thing in things:
            yield thing
            count.add()


class Parts:
    """A long work in parts, one after the other: a live line on a terminal, elsewhere a plain line for each part.

    Args:
        weights: part -> how long it takes, about, in any unit; 0 = unknown, and not counted in the time left.
    """

    def __init__(self, weights: Mapping[str, float], stream: IO[str] | None = None):
        self._weights, self._stream = dict(weights), stream or sys.stderr
        self._live = LiveLine(self._stream)
        self._begun: list[str] = []
        self._since = self._spent = 0.0  # when the last part began; seconds that counted ones took

    def begin(self, name: str) -> None:
        """Say that a part begins, by which the one before it has ended."""
        now = time.monotonic()
        if self._begun and self._weights.get(self._begun[-1]):
            self._spent += now - self._since
        done = sum(self._weights.get(one, 0) for one in self._begun)
        left = sum(weight for one, weight in self._weights.items() if one not in self._begun)
        rest = f", about {duration_text(self._spent / done * left)} left" if done and left else ""
        self._begun.append(name)
        self._since, number, total = now, len(self._begun), max(len(self._begun), len(self._weights))
        if self._live.visible:
            self._live.show(f"{bar(number - 1, total)}  {name}{rest}", now=True)
        else:
            print(f"[{number}/{total}] {name}{rest}", file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._live.clear()


def bar(done: int, total: int, width: int = 24) -> str:
    """'[######------] 10/20'."""
    full = width * done // max(1, total)
    return f"[{'#' * full}{'-' * (width - full)}] {done}/{total}"


def duration_text(seconds: float) -> str:
    """A duration as people say it: '12 s', '3 min', '1 h 20 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
