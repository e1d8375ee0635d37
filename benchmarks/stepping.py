"""Training programs that halt after every step, so that two of them can be timed by turns, and clocks for their parts.

A whole training script is one long call. Here it runs in a thread of its own and waits at the end of each step until
it is told to go on; only one thread ever works. The parts of a step are timed by wrapping the stock methods that do
them, which both programs call, so that one set of clocks serves both and no program is changed.
"""

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from protocol import Timing, timed


class Stopped(BaseException):
    """Raised in a program's thread to end it; no handler of errors should catch it."""


class Program:
    """A function `run(pause)` that calls `pause()` at the end of each step."""

    def __init__(self, run: Callable[[Callable[[], None]], None]):
        self._run, self._end = run, False
        self._error: BaseException | None = None
        self._go, self._halted = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.finished = False

    def step(self) -> None:
        """Go on to the end of the next step; the first call also starts the program.

        Raises: whatever the program raised.
        """
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._halted.acquire()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        if self._thread.is_alive():
            self._end = True
            self._go.release()
            self._thread.join()

    def _pause(self) -> None:
        self._halted.release()
        self._go.acquire()
        if self._end:
            raise Stopped

    def _work(self) -> None:
        try:
            self._run(self._pause)
        except Stopped:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.finished = True
            self._halted.release()


class Parts:
    """Timings of named parts of a step, from methods wrapped while the block runs.

    Args:
        methods: part -> [(class, name of a method)]; what a part calls within itself counts as its own.
    """

    def __init__(self, methods: dict[str, list[tuple[Any, str]]]):
        self.methods = methods
        self.timings: dict[str, list[Timing]] = defaultdict(list)
        self._within = False
        self._own: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> "Parts":
        for part, places in self.methods.items():
            for owner, name in places:
                self._own.append((owner, name, vars(owner).get(name)))
                setattr(owner, name, self._wrapped(part, getattr(owner, name)))
        return self

    def __exit__(self, *_) -> None:
        for owner, name, method in reversed(self._own):
            delattr(owner, name) if method is None else setattr(owner, name, method)  # None: it was inherited
        self._own.clear()

    def take(self) -> dict[str, list[Timing]]:
        """The timings since the last call."""
        taken, self.timings = dict(self.timings), defaultdict(list)
        return taken

    def _wrapped(self, part: str, method: Callable) -> Callable:
        def call(*args, **kwargs):
            if self._within:
                return method(*args, **kwargs)
            results = []
            self._within = True
            try:
                self.timings[part].append(timed(lambda: results.append(method(*args, **kwargs))))
            finally:
                self._within = False
            return results[0]

        return call


def part_seconds(parts: dict, part: str, clock: str) -> float:
    """Of one step, on average; "other" is what no part accounts for."""
    if part != "other":
        return sum(getattr(timing, clock) for timing in parts.get(part, [])) / parts["steps"]
    named = sum(part_seconds(parts, name, clock) for name in parts if name not in ("steps", "whole"))
    return part_seconds(parts, "whole", clock) - named
