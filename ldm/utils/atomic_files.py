"""Files and folders that are complete or absent, written by one process at a time, on disks that may be full.

A writer holds a lock, which the kernel releases when the process dies, however it dies. So whoever holds the lock of a
target knows that unfinished files beside it are left over from dead processes, and removes them.
"""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ldm.utils import file_locks
from ldm.utils.errors import UserError

NO_SPACE = "free disk space or set data.cache_dir to another folder"
# unfinished, or the lock of such: a cache of any key, a checkpoint, a finished model
OURS = re.compile(r"\.((?:files-)?[0-9a-f]{24}|step-\d{8}|final)\..*(?:tmp|old|lock)")
WINDOWS = os.name == "nt"
RENAMINGS = 20  # attempts there, 0.1 s apart
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(UserError):
    """There is no space for a file, or a limit on its size is reached."""


@contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which replaces `path` atomically at the end; on an error nothing is left of it."""
    draft = _beside(path, f"{os.getpid()}.tmp")
    try:
        with draft.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        _rename(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file completely or not at all."""
    with atomic_open(path) as stream:
        stream.write(data)


def write_checksummed(path: Path, data: bytes) -> None:
    """As `atomic_write`, after a first line with the data's sha256."""
    atomic_write(path, hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def read_checksummed(path: Path) -> bytes:
    """What `write_checksummed` wrote. Raises: ValueError if a bit of it has changed, OSError if it cannot be read."""
    checksum, _, data = path.read_bytes().partition(b"\n")
    if checksum.decode("ascii", "replace") != hashlib.sha256(data).hexdigest():
        raise ValueError("its sha256 differs")
    return data


def require_free_space(folder: Path, size: int, what: str, advice: str = NO_SPACE) -> None:
    """Raises: DiskFull, before anything is written, if `folder` has less than `size` bytes free."""
    free = _free(folder)
    if size > free:
        needs = f"it needs {size / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free"
        raise DiskFull(f"cannot write {what} to {folder}: {needs}; {advice}")


@contextmanager
def readable_io_errors(path: Path, advice: str) -> Iterator[None]:
    """Raises: UserError in place of what libraries raise when `path` cannot be written, DiskFull if it is full."""
    try:
        yield
    except Exception as error:  # safetensors has an exception of its own for it, and tokenizers a bare one
        if isinstance(error, UserError) or (not isinstance(error, OSError) and "os error" not in str(error)):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        number = getattr(error, "errno", None) or int((re.findall(r"os error (\d+)", reason) or [0])[0])
        if number not in FULL:
            raise UserError(f"cannot write {path}: {reason}; {advice}") from error
        left = f"{_free(path.parent) / 2**20:.1f} MiB are free there"
        raise DiskFull(f"cannot write {path}: {reason}, {left}; {advice}") from error


def _free(folder: Path) -> int:
    """Free bytes where `folder` is, or will be."""
    there = next(place for place in [folder, *folder.absolute().parents] if place.exists())
    return shutil.disk_usage(there).free


@contextmanager
def exclusive_lock(target: Path, quiet: bool = False) -> Iterator[None]:
    """Hold the lock of `target`, after waiting (and, unless `quiet`, saying so) for another process that does.

    Raises: OSError.
    """
    lock = _beside(target, "lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(lock)
    if descriptor is None:
        if not quiet:
            print(f"waiting for another process that writes {target}", flush=True)
        descriptor = _take(lock, wait=True)
    try:
        _sweep(target)
        yield
    finally:
        file_locks.remove(lock, descriptor)


@contextmanager
def try_lock(target: Path) -> Iterator[bool]:
    """Hold the lock of `target` if no other process does: whether it is held here. Raises: OSError."""
    lock = _beside(target, "lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(lock)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            file_locks.remove(lock, descriptor)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which replaces `folder` atomically at the end; on an error nothing is left of it.

    The caller holds the lock of `folder`. Raises: OSError.
    """
    stage, old = (_beside(folder, f"{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        stage.mkdir(parents=True)
        yield stage
        for file in stage.rglob("*"):
            if file.is_file():
                _sync(file)
        if folder.exists():
            _rename(folder, old)
        _rename(stage, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        _settle(old, folder)


def remove_stale(folder: Path) -> None:
    """Remove what dead writers of caches, checkpoints and finished models left in `folder`."""
    for path in list(folder.glob(".*")):
        named = OURS.fullmatch(path.name)
        if named and (descriptor := _take(lock := _beside(path.with_name(named[1]), "lock"))) is not None:
            if path != lock:
                _settle(path, path.with_name(named[1]))
            file_locks.remove(lock, descriptor)


def _sweep(target: Path) -> None:
    """The same beside a target whose lock is held here, and for that target whatever its name."""
    own = re.compile(re.escape(_beside(target, "").name) + r".*(tmp|old)")
    for path in list(target.parent.glob(".*")):
        if own.fullmatch(path.name):
            _settle(path, target)
    remove_stale(target.parent)


def _settle(path: Path, target: Path) -> None:
    """Delete a leftover, but restore a complete folder that was to be replaced if its replacement is missing."""
    if path.suffix == ".old" and path.exists() and not target.exists():
        _rename(path, target)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _beside(target: Path, end: str) -> Path:
    """How a draft of `target`, what it replaces, and its lock are named: `.name.end`, in the same folder."""
    return target.with_name(f".{target.name}.{end}")


def _take(lock: Path, wait: bool = False) -> int | None:
    """The descriptor that holds the lock, or None if another process does and `wait` is False."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        if not file_locks.lock(descriptor, wait):
            os.close(descriptor)
            return None
        with suppress(FileNotFoundError):
            if WINDOWS or os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor  # else its last holder has just deleted it: lock the one that is there now
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder; Windows syncs only files, and only to write."""
    if path.is_dir():
        with suppress(PermissionError):
            _sync_as(path, os.O_RDONLY)
        return
    try:
        _sync_as(path, os.O_RDONLY)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        _sync_as(path, os.O_RDWR)


def _sync_as(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(path: Path, target: Path) -> None:
    """Windows refuses while a virus scanner or an indexer looks at a file: that passes."""
    for _ in range(RENAMINGS if WINDOWS else 0):
        with suppress(PermissionError):
            path.replace(target)
            return
        time.sleep(file_locks.RETRY_SECONDS)
    path.replace(target)
