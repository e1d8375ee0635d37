"""Decoding in processes of its own: an image that hangs, eats memory or crashes its decoder costs a line, not the run.

A file of a kilobyte can do any of the three to Pillow's decoders: a BMP of one endless row, a JPEG of a thousand
scans, a TIFF of giant tiles. A worker therefore runs under limits that the kernel keeps, or elsewhere its parent
(`process_watch`); when one dies its image is refused with the reason, and the next starts another. Images go in and
results come out over pipes, each led by its length.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.formats.decoding import MAX_BYTES, ImageError
from ldm.formats.decoding_process import BAD, DONE, ERROR, NO_MEMORY, receive, send
from ldm.formats.process_watch import TIME, Watch, kernel_keeps_limits
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from ldm.formats.records import Source

SECONDS = 20  # of processor time for one image; the slowest honest ones, 12-megapixel QOI, take 13
MEMORY = 5 * 2**29  # of a worker; the largest honest image, an animated WebP at the pixel cap, takes 1.6 GiB
PICTURES_PER_WORKER = 16  # a start takes time: a small folder is not worth many

_FROM_OUTSIDE = {-getattr(signal, name, 0) for name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")}


def map_pictures(source: "Source", task: str, **options: Any) -> Iterator[tuple[int, bytes | ImageError]]:
    """(index, result of a task of `decoding_process.TASKS`) in sample order; an `ImageError` is given, not raised.

    Raises: UserError: if workers cannot be started, or are killed from outside.
    """
    count = max(1, min(8, os.cpu_count() or 1, len(source.samples) // PICTURES_PER_WORKER))
    workers = [Worker(task, options) for _ in range(count)]
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def attempt(data: bytes | ImageError) -> bytes | ImageError:
        if isinstance(data, ImageError):
            return data
        worker = idle.get()
        try:
            return worker(data)
        except ImageError as error:
            return error
        finally:
            idle.put(worker)

    waiting: deque[tuple[int, int, Future]] = deque()
    pool = ThreadPoolExecutor(count)
    try:
        for index, data in source.encoded():
            waiting.append((index, len(data) if isinstance(data, bytes) else 0, pool.submit(attempt, data)))
            while len(waiting) > 2 * count or sum(size for _, size, _ in waiting) > MAX_BYTES:  # memory is bounded
                first, _, result = waiting.popleft()
                yield first, result.result()
        for index, _, result in waiting:
            yield index, result.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.stop()


class Worker:
    """One process at a time; started when first needed, and again after one died."""

    def __init__(self, task: str, options: dict[str, Any]):
        self._work = json.dumps([task, options, SECONDS, MEMORY])
        self._process: subprocess.Popen | None = None
        self._watch: Watch | None = None
        self._stopped = False

    def __call__(self, data: bytes) -> bytes:
        """The task's result for one encoded image. Raises: ImageError; UserError as in `map_pictures`."""
        process = self._process = self._process or self._start()
        try:
            with self._watch.working() if self._watch else contextlib.nullcontext():
                send(process.stdin, data)
                answer = receive(process.stdout)
        except OSError:
            answer = None
        except BaseException:  # an answer that nobody took would be the next image's
            self._process = None
            process.kill()
            _close(process)
            raise
        if answer is None:
            self._process = None
            raise _cause(process, self._watch.exceeded if self._watch else "")
        if answer[:1] == ERROR:
            raise RuntimeError(answer[1:].decode())
        if answer[:1] == BAD:
            raise ImageError(answer[1:].decode())
        return answer[1:]

    def stop(self) -> None:
        self._stopped = True
        if self._process is not None:
            self._process.kill()
            _close(self._process)

    def _start(self) -> subprocess.Popen:
        if self._stopped:
            raise UserError("decoding was stopped")
        own = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join([own, *(path for path in sys.path if path)])
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ldm.formats.decoding_process", self._work],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # where libtiff and others complain
                env={**os.environ, **single, "PYTHONPATH": paths},
                start_new_session=True,  # Ctrl-C is for the parent alone; and on Windows:
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            raise UserError(f"cannot start a process to decode images: {error}") from error
        if receive(process.stdout) != DONE:
            raise UserError(f"cannot start a process to decode images: {sys.executable} ended with {process.wait()}")
        self._watch = None if kernel_keeps_limits() else Watch(process, SECONDS, MEMORY)
        return process


def _cause(process: subprocess.Popen, exceeded: str) -> Exception:
    """Why a worker died, as what to raise."""
    _close(process)
    code = process.returncode
    if exceeded and exceeded != TIME:
        return ImageError(NO_MEMORY)
    if code in _FROM_OUTSIDE and not exceeded:
        return UserError(
            f"a process that decodes images was killed (signal {-code}), as systems do when memory runs out: "
            "close other programs and start again"
        )
    if exceeded or code == -getattr(signal, "SIGPROF", 0):
        return ImageError(f"takes more than {SECONDS} s to decode: save it again, for example as PNG")
    return ImageError("crashes its decoder")


def _close(process: subprocess.Popen) -> None:
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was still to be written has no reader
            if stream is not None:
                stream.close()
    process.wait()
