"""Ctrl-C and SIGTERM during work that must not be interrupted: a training step, or saving."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ldm.utils.runtime import INTERRUPTS

REPEAT_SECONDS = 3.0  # seconds: a launcher passes on a signal that its processes have already received


class DeferredSignals:
    """Defers the first SIGINT or SIGTERM, in `pending`; a second one interrupts at once.

    Used as a context: on a normal exit a signal that is still pending is raised. Outside the main thread, where Python
    allows no signal handlers, nothing is deferred.
    """

    def __init__(self) -> None:
        self.pending: int = 0  # the number of the signal
        self._since = 0.0
        self._delivering = self._again = False

    def __enter__(self) -> "DeferredSignals":
        ours = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._take) for number in INTERRUPTS} if ours else {}
        return self

    def __exit__(self, kind, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self.pending:
            raise INTERRUPTS[self.pending]

    @contextmanager
    def deliver(self) -> Iterator[None]:
        """What runs within may be abandoned: the first signal ends it at once, silently, and is pending afterwards."""
        self._delivering = True
        try:
            yield
        except KeyboardInterrupt:
            if self._again:
                raise
        finally:
            self._delivering = False

    def _take(self, number: int, _frame) -> None:
        now = time.monotonic()
        if not self.pending:
            self.pending, self._since = number, now
            if self._delivering:
                raise INTERRUPTS[number]
        elif now - self._since > REPEAT_SECONDS:
            self._again = True
            raise INTERRUPTS[number]


def ignore_interrupts(*_) -> None:
    """For a data loader's worker: a signal to the process group must not stop the data of a step being finished."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
