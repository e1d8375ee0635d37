"""Locks on files, which the system releases when the process ends, however it ends: flock, lockf, or Windows' own."""

import errno
import importlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # by another; any other error means that there are no locks here
LOCKED_BYTE = 2**30  # of Windows, where nobody else may read what is locked: beyond all content
RETRY_SECONDS = 0.1


def lock(descriptor: int, wait: bool = False, private: bool = False) -> bool:
    """Lock an open file until it is closed: True if it is ours now, also on file systems that have no locks.

    Args:
        wait: for another process that holds the lock, instead of giving False.
        private: to this process; a process that is forked from it then does not hold it too.
    """
    try:
        import fcntl
    except ImportError:
        return _lock_byte(descriptor, wait)
    take = fcntl.lockf if private else fcntl.flock
    try:
        take(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return error.errno not in HELD
    return True


def _lock_byte(descriptor: int, wait: bool) -> bool:
    try:
        msvcrt: Any = importlib.import_module("msvcrt")
    except ImportError:
        return True
    while True:
        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            return True
        except OSError as error:
            if error.errno not in HELD:
                return True
        if not wait:
            return False
        time.sleep(RETRY_SECONDS)


def remove(path: Path, descriptor: int | None) -> None:
    """Release a lock and delete its file: first the latter, so that nobody locks a file that is about to go.

    Windows deletes no file that is open, so there the order does not matter.
    """
    try:
        path.unlink()
    except PermissionError:
        if descriptor is not None:
            os.close(descriptor)
        with suppress(OSError):  # another process waits for it already
            path.unlink()
        return
    except OSError:
        pass
    if descriptor is not None:
        os.close(descriptor)
