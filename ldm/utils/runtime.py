"""Running a program: its threads, its exit codes, and what ends it."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable

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


def check_utf8(words: Iterable[str]) -> None:
    """Raises: UserError for an argument of bytes that are not UTF-8, which Python keeps as surrogates."""
    for word in words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UserError(f"argument {word!r} is not UTF-8 text")


def run_main(main: Callable[[], int | None]) -> None:
    """Run an entry point and exit with its code: 2 and one line for a `UserError`, 130 for Ctrl-C, 143 for SIGTERM."""
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


def _terminate(*_) -> None:
    raise Terminated
