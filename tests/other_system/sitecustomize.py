"""Lets Linux behave towards ldm as Windows does, in every process with this folder on PYTHONPATH.

ldm finds none of the modules that only POSIX has, and Windows' locks in place of them; nothing forks, new processes are
spawned; there are no timers, and no numbers of cores; a file that the process has open or mapped cannot be removed or
renamed, nor a folder with such a file; nothing is renamed onto what exists; a folder cannot be opened, and what was
opened for reading cannot be synced; text is written in Windows' encoding where nothing else is said.
"""

import builtins
import errno
import fcntl
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from types import ModuleType

HIDDEN = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "readline", "curses"}
# by ldm's name alone: the others look for it to learn on which system they are
MSVCRT = ModuleType("msvcrt")
MSVCRT.LK_NBLCK = 2
ABSENT = {
    os: ("fork", "forkpty", "sched_getaffinity", "getloadavg"),
    signal: ("setitimer", "alarm", "SIGHUP", "SIGPROF", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGBUS"),
}
real = {name: getattr(os, name) for name in ("open", "fsync", "unlink", "remove", "rename", "replace")}
real_import, real_import_module, real_text = builtins.__import__, importlib.import_module, builtins.open


def hide_modules():
    def find(name, globals=None, *rest, **more):
        told = globals or {}
        if name.split(".")[0] in HIDDEN and str(told.get("__package__") or told.get("__name__")).split(".")[0] == "ldm":
            raise ImportError(f"there is no {name} on this system")
        return real_import(name, globals, *rest, **more)

    def locking(descriptor, mode, count):
        assert (mode, count) == (MSVCRT.LK_NBLCK, 1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    MSVCRT.locking = locking
    builtins.__import__ = find
    importlib.import_module = lambda name, package=None: (
        MSVCRT if name == "msvcrt" else real_import_module(name, package)
    )


def absolute(path, dir_fd=None):
    folder = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else os.getcwd()
    return os.path.normpath(os.path.join(folder, os.fsdecode(path)))


def refuse_if_in_use(path):
    used = {os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _is_open(number)}
    with real_text("/proc/self/maps", encoding="utf-8") as maps:
        used |= {line.split(maxsplit=5)[5].strip() for line in maps if len(line.split(maxsplit=5)) == 6}
    if any(one == path or one.startswith(path + "/") for one in used):
        raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used", path)


def _is_open(number):
    try:
        return os.path.isfile(os.readlink(f"/proc/self/fd/{number}"))
    except OSError:
        return False


def change_files():
    def unlink(path, *, dir_fd=None):
        refuse_if_in_use(absolute(path, dir_fd))
        return real["unlink"](path, dir_fd=dir_fd)

    def rename(source, target, **more):
        if os.path.exists(target):
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", target)
        return replace(source, target, **more)

    def replace(source, target, **more):
        refuse_if_in_use(absolute(source))
        if os.path.isfile(target):
            refuse_if_in_use(absolute(target))
        return real["replace"](source, target, **more)

    def open_(path, flags, *rest, **more):
        if not isinstance(path, int) and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real["open"](path, flags, *rest, **more)

    def fsync(descriptor):
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        return real["fsync"](descriptor)

    os.unlink = os.remove = unlink
    os.rename, os.replace, os.open, os.fsync = rename, replace, open_, fsync
    shutil._use_fd_functions = False  # as where folders cannot be opened
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile


for module, names in ABSENT.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
hide_modules()
change_files()
multiprocessing.set_start_method("spawn")
sys.stdout.reconfigure(encoding="cp1252", errors="strict")
