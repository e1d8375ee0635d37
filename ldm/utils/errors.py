"""What a user sees when something is wrong: one readable line and exit code 2, never a traceback."""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable


class UserError(Exception):
    """A fault the user can mend. The message says what came, what is allowed and what to do next, in one line."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: somebody asks the program to end in good order."""


INTERRUPTS: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


# what may stand in an address or a setting and must not be shown again
SECRETS = (
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), "***"),  # https://user:password@host
    (re.compile(r"(?i)([?&][\w-]*(?:token|key|secret|signature|password|credential)=)[^&\s'\"]+"), r"\1***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{12,}"), "hf_***"),
)


def redacted(text: str) -> str:
    """`text` without passwords in addresses, signatures in queries and tokens of the Hub."""
    for pattern, put in SECRETS:
        text = pattern.sub(put, text)
    return text


def prepare_threads(threads: int = 0) -> None:
    """Set the OpenMP wait policy, and the thread count unless it is 0. Works only before torch is imported.

    Two spinning OpenMP threads beside one busy process run eager torch 13 to 15 times slower; passive waiting
    brings that to 1.2 times. A value the user has set is left alone.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


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


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, by torch (on any device) or by Python."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(each in str(error).lower() for each in words)


def _terminate(*_) -> None:
    raise Terminated
