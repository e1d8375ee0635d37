"""Limits of processor time and memory for a child process where the kernel keeps none: its parent looks on.

Linux keeps both, macOS the time, Windows neither. Looking on is coarser: between two looks a process may take more.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SECONDS_BETWEEN_LOOKS = 0.2
TIME, MEMORY = "time", "memory"


def kernel_keeps_limits() -> bool:
    return sys.platform == "linux" and hasattr(signal, "setitimer")


class Watch(threading.Thread):
    """Kills `process` when it takes too much.

    Attributes:
        exceeded: `TIME` or `MEMORY` once that was so, else "".

    Args:
        seconds: of processor time, for one piece of work.
        memory: bytes of resident memory, during work.
    """

    def __init__(self, process: subprocess.Popen, seconds: float, memory: int):
        super().__init__(daemon=True)
        self.exceeded = ""
        self._process, self._seconds, self._memory = process, seconds, memory
        self._begun: float | None = None  # processor time then; None while there is no work
        self.start()

    @contextmanager
    def working(self) -> Iterator[None]:
        """A piece of work, from beginning to end."""
        self._begun = self._used()[0]
        try:
            yield
        finally:
            self._begun = None

    def run(self) -> None:
        while self._process.poll() is None and not self.exceeded:
            if (begun := self._begun) is not None:
                self._look(begun)
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _look(self, begun: float) -> None:
        seconds, memory = self._used()
        if seconds - begun > self._seconds:
            self.exceeded = TIME
        elif memory > self._memory:
            self.exceeded = MEMORY
        if self.exceeded:
            self._process.kill()

    def _used(self) -> tuple[float, int]:
        """Processor time in seconds and resident memory in bytes; 0 of a process that has ended."""
        import psutil

        with suppress(psutil.Error):
            process = psutil.Process(self._process.pid)
            times = process.cpu_times()
            return times.user + times.system, process.memory_info().rss
        return 0.0, 0
