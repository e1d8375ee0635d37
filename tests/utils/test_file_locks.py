"""Locks by what the system has: POSIX, Windows (an imitation of its module), or neither."""

import builtins
import errno
import fcntl
import importlib
import os
import threading
from types import SimpleNamespace

import pytest

from ldm.utils import atomic_files, file_locks


def windows_locking(descriptor, mode, count):
    """As msvcrt's: a lock of a byte at the position, which others see."""
    assert (mode, count, os.lseek(descriptor, 0, os.SEEK_CUR)) == (2, 1, file_locks.LOCKED_BYTE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


@pytest.fixture(params=["posix", "windows", "neither"])
def system(request, monkeypatch):
    """The module of locks that this system has."""
    if request.param == "posix":
        return request.param
    real_import, real_module = builtins.__import__, importlib.import_module

    def find(name, *rest):
        if name == "fcntl":
            raise ImportError(name)
        return real_import(name, *rest)

    def module(name, package=None):
        if name != "msvcrt":
            return real_module(name, package)
        if request.param == "neither":
            raise ImportError(name)
        return SimpleNamespace(locking=windows_locking, LK_NBLCK=2)

    monkeypatch.setattr(builtins, "__import__", find)
    monkeypatch.setattr(importlib, "import_module", module)
    return request.param


def opened(path):
    return os.open(path, os.O_RDWR | os.O_CREAT)


def test_one_holds_a_lock_until_it_is_closed(system, tmp_path):
    first, second = opened(tmp_path / "lock"), opened(tmp_path / "lock")
    assert file_locks.lock(first)
    assert file_locks.lock(second) == (system == "neither")  # without locks everybody goes on
    os.close(first)
    assert file_locks.lock(second)
    os.close(second)


def test_a_lock_is_waited_for(system, tmp_path, monkeypatch):
    monkeypatch.setattr(file_locks, "RETRY_SECONDS", 0.01)
    first, second = opened(tmp_path / "lock"), opened(tmp_path / "lock")
    file_locks.lock(first)
    freed: list[int] = []
    timer = threading.Timer(0.1, lambda: (freed.append(first), os.close(first)))
    timer.start()
    assert file_locks.lock(second, wait=True) and (system == "neither" or freed == [first])
    timer.join()
    os.close(second)


def test_a_file_system_without_locks_does_not_look_like_a_lock_that_is_held(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(fcntl, "lockf", none)
    descriptor = opened(tmp_path / "lock")
    assert file_locks.lock(descriptor) and file_locks.lock(descriptor, private=True)
    os.close(descriptor)


def test_the_file_of_a_lock_goes_though_open_files_cannot_be_deleted(tmp_path, monkeypatch):
    descriptor, real = opened(tmp_path / "lock"), os.unlink

    def unlink(path, **more):
        if any(os.path.samefile(path, f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if _exists(n)):
            raise PermissionError(errno.EACCES, "in use", path)
        real(path, **more)

    monkeypatch.setattr(os, "unlink", unlink)
    file_locks.remove(tmp_path / "lock", descriptor)
    assert not (tmp_path / "lock").exists()
    with pytest.raises(OSError):
        os.fstat(descriptor)


def _exists(number):
    return os.path.exists(f"/proc/self/fd/{number}")


def test_writers_take_turns_on_every_system(system, tmp_path, monkeypatch):
    monkeypatch.setattr(file_locks, "RETRY_SECONDS", 0.01)
    seen = []

    def write(number):
        with atomic_files.exclusive_lock(tmp_path / "cache"):
            seen.append(("in", number))
            threading.Event().wait(0.02)
            seen.append(("out", number))

    threads = [threading.Thread(target=write, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if system != "neither":
        assert all(a[1] == b[1] for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert len(seen) == 8 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("times", [0, 3])
def test_a_file_that_a_scanner_looks_at_is_renamed_a_little_later(tmp_path, monkeypatch, times):
    monkeypatch.setattr(atomic_files, "WINDOWS", True)
    monkeypatch.setattr(file_locks, "RETRY_SECONDS", 0.001)
    real, left = os.replace, [PermissionError(errno.EACCES, "in use")] * times

    def replace(*paths):
        if left:
            raise left.pop()
        real(*paths)

    monkeypatch.setattr(os, "replace", replace)
    atomic_files.atomic_write(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content" and not left


def test_files_and_folders_are_synced_as_windows_allows(tmp_path, monkeypatch):
    """No folder can be opened, and only what is open for writing can be synced."""
    synced, real_open, real_sync = [], os.open, os.fsync

    def open_(path, flags, *rest):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real_open(path, flags, *rest)

    def fsync(number):
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}")))
        real_sync(number)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_files.staged(tmp_path / "new") as stage:
        (stage / "a.txt").write_bytes(b"a")
    assert synced == ["a.txt"] and (tmp_path / "new" / "a.txt").read_bytes() == b"a"
