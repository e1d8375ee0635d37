"""Ctrl-C and SIGTERM while something runs that must not be cut in two: a step of training, or saving."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ldm.utils.runtime import INTERRUPTS

ONE_WISH = 3.0  # seconds: a launcher passes on the signal that its processes have already got


class Held:
    """Keeps the first SIGINT or SIGTERM for later, in `pending`; a second one ends what runs at once.

    Used as a context: on a peaceful exit a signal that is still pending is raised. Outside the main thread, where
    Python lets nobody handle signals, nothing is held.
    """

    def __init__(self) -> None:
        self.pending: int = 0  # the number of the signal
        self._since = 0.0
        self._through = self._again = False

    def __enter__(self) -> "Held":
        ours = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._take) for number in INTERRUPTS} if ours else {}
        return self

    def __exit__(self, kind, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self.pending:
            raise INTERRUPTS[self.pending]

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """What runs within may be dropped: the first signal ends it at once, silently, and is pending afterwards."""
        self._through = True
        try:
            yield
        except KeyboardInterrupt:
            if self._again:
                raise
        finally:
            self._through = False

    def _take(self, number: int, _frame) -> None:
        now = time.monotonic()
        if not self.pending:
            self.pending, self._since = number, now
            if self._through:
                raise INTERRUPTS[number]
        elif now - self._since > ONE_WISH:
            self._again = True
            raise INTERRUPTS[number]


def ignore_interrupts(*_) -> None:
    """For a loader's worker: a signal to the whole group must not take the data from a step that is being finished."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
