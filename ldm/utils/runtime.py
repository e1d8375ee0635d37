"""Running a program: its threads, its exit codes, and what ends it."""

import faulthandler
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from ldm.utils.errors import UserError, redacted


class Terminated(KeyboardInterrupt):
    """SIGTERM: somebody asks the program to end in good order."""


INTERRUPTS: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def prepare_threads(threads: int = 0) -> None:
    """Set the OpenMP wait policy, which works only before torch is imported, and the thread count unless it is 0.

    Two spinning OpenMP threads beside one busy process run eager torch 13 to 15 times slower; passive waiting
    brings that to 1.2 times. A value the user has set is left alone.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(threads)


def usable_cores() -> int:
    """CPU cores that this process may use; systems other than Linux say only how many there are."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def launched_processes() -> int:
    """How many processes the launcher started for one training, whether they have joined yet or not."""
    return int(os.environ.get("WORLD_SIZE", 1))


def free_port(host: str = "127.0.0.1") -> int:
    """A port of this address that nobody listens on."""
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def peak_memory() -> int:
    """Bytes: the most resident memory that this process has had; where no system call says it, what it has now."""
    try:
        import resource
    except ImportError:
        import psutil

        used = psutil.Process().memory_info()
        return getattr(used, "peak_wset", used.rss)  # the former on Windows
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_utf8(words: Iterable[str]) -> None:
    """Raises: UserError for an argument of bytes that are not UTF-8, which Python keeps as surrogates."""
    for word in words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UserError(f"argument {word!r} is not UTF-8 text")


def run_main(main: Callable[[], int | None]) -> None:
    """Run an entry point and exit with its code: 2 and one line for a `UserError`, 130 for Ctrl-C, 143 for SIGTERM."""
    _print_everything()
    if not faulthandler.is_enabled():
        with suppress(OSError, AttributeError):  # stderr is no file, or None
            faulthandler.enable()  # a crash in native code, as of a driver, says where
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {redacted(' '.join(str(error).split()))}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        print("terminated" if terminated else "interrupted", file=sys.stderr)
        code = 128 + (signal.SIGTERM if terminated else signal.SIGINT)
    except BrokenPipeError:  # `ldm ... | head`: the reader left, which is no fault
        sys.stderr.close()
        code = 141
    sys.exit(code)


def _print_everything() -> None:
    """Print the number of a letter that the output's encoding lacks, as that of a pipe on Windows, and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _terminate(*_) -> None:
    raise Terminated


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for each small file; diffusers draws none."""
    from transformers.utils import logging as its_logging

    shown = its_logging.is_progress_bar_enabled()
    its_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            its_logging.enable_progress_bar()
