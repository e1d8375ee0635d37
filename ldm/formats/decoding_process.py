"""The process that `decode_workers` starts: it answers images until there are no more, under limits.

It imports little, for its start is most of the time that a small folder takes.
"""

import contextlib
import json
import signal
import struct
import sys
from collections.abc import Callable
from typing import IO, Any

from ldm.formats.decoding import ImageError, fit, look, quiet_decoders, shrink

TASKS: dict[str, Callable[..., bytes]] = {"fit": fit, "look": look, "shrink": shrink}
DONE, BAD, ERROR = b"+", b"-", b"!"  # how an answer begins: a result, the reason of an ImageError, a traceback
NO_MEMORY = "not enough memory to decode it"
LENGTH = struct.Struct("<Q")


def serve(task: str, options: dict[str, Any], seconds: float, memory: int) -> None:
    """Answer images until there are no more: from standard input to standard output."""
    _limit(memory)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    send(answers, DONE)
    with quiet_decoders():
        while (data := receive(requests)) is not None:
            _timer(seconds)
            try:
                answer = DONE + TASKS[task](data, **options)
            except ImageError as error:
                answer = BAD + str(error).encode("utf-8", "replace")
            except MemoryError:
                answer = BAD + NO_MEMORY.encode()
            except Exception:  # an error of ours, for the parent to raise
                import traceback

                answer = ERROR + traceback.format_exc().encode("utf-8", "replace")
            _timer(0)
            send(answers, answer)


def _limit(memory: int) -> None:
    """Let the kernel end what takes too long (see `_timer`) or too much memory."""
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each thread's stack would count as memory
    for name in ("SIGINT", "SIGTERM"):  # the parent's business; when it ends, so does the pipe
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows; not above a limit that is set
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _timer(seconds: float) -> None:
    """After so much processor time the process dies of SIGPROF, also amid a decoder written in C; 0 = no more."""
    if set_timer := getattr(signal, "setitimer", None):
        signal.signal(getattr(signal, "SIGPROF"), signal.SIG_DFL)  # noqa: B009 (Windows has none of these)
        set_timer(getattr(signal, "ITIMER_PROF"), seconds)  # noqa: B009


def send(stream: IO[bytes] | None, data: bytes) -> None:
    assert stream is not None
    stream.write(LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes] | None) -> bytes | None:
    """The next message, or None when there will be no more."""
    assert stream is not None
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    length = LENGTH.unpack(head)[0]
    data = stream.read(length)
    return data if len(data) == length else None


if __name__ == "__main__":
    serve(*json.loads(sys.argv[1]))
