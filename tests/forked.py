"""Children that share what this process has imported: a trial takes a second where its imports would take ten.

What is waited for comes within seconds; `LIMIT`, many times longer, only ends what hangs, on busy machines too.
"""

import contextlib
import faulthandler
import functools
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from accelerate.state import AcceleratorState

from ldm.utils.runtime import run_main

LIMIT = 1800.0  # seconds


@functools.cache
def warm_up() -> None:
    """Do once what each child would do again: imports, and the thousand patterns that transformers compiles."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import ldm.data.image_files.dataset  # noqa: F401

    get_checkpoint_conversion_mapping("clip")


class Child:
    """A process that runs `work` as an entry point would, its output in a file; `ranks` of them are a world.

    Attributes:
        running: those nobody has waited for to the end.
    """

    running: ClassVar[set["Child"]] = set()

    def __init__(self, work: Callable[[], object], output: Path):
        self.output = output
        warm_up()
        sys.stdout.flush(), sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(work, output)
        self.running.add(self)

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = LIMIT) -> int:
        """The exit code, or minus the signal that ended it. Kills it and fails after `seconds`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.running.discard(self)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        self.end()
        raise AssertionError(f"still running after {seconds} s: {self.said()}")

    def end(self) -> None:
        """Kill it, whatever it does."""
        self.kill(signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.running.discard(self)

    def said(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def world(
    work: Callable[[], object], output: Path, size: int, nodes: bool = False, environment: Mapping[str, str] = {}
) -> list[Child]:
    """One child for each rank, in one process group of torch where there are several; each a node if `nodes`.

    `environment`: what a launcher of several adds to theirs.
    """
    if size == 1:
        return [Child(work, output)]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        **environment,
    }

    def ranked(rank: int) -> Callable[[], object]:
        def run():
            os.environ.update(shared | {"RANK": str(rank), "LOCAL_RANK": "0" if nodes else str(rank)})
            AcceleratorState._reset_state(reset_partial_state=True)  # else a world of one that this process was in
            return work()

        return run

    return [Child(ranked(rank), output.with_name(f"{output.name}-{rank}")) for rank in range(size)]


def until(ready: Callable[[], bool], seconds: float = LIMIT) -> None:
    """Wait for something that a child does. Raises: AssertionError if it never does."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "what was waited for never happened"
        time.sleep(0.002)


def _run(work: Callable[[], object], output: Path) -> None:
    """The child's whole life; never returns into the parent's code."""
    code = 70
    try:
        with open(output, "w", buffering=1) as said:
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
            faulthandler.enable(said)  # a crash in native code says where, and in which thread
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                try:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    run_main(lambda: (work(), 0)[1])
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else int(end.code is not None)
                except BaseException:
                    traceback.print_exc()
    finally:
        os._exit(code)
