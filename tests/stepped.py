"""Killing a process before its n-th system call, by stepping it with ptrace (Linux)."""

import ctypes
import os
import signal
from collections.abc import Callable

TRACEME, SYSCALL, SETOPTIONS = 0, 24, 0x4200
SYSTEM_CALLS_APART, KILL_ON_EXIT = 1, 0x100000
IN_A_CALL = signal.SIGTRAP | 0x80


def _ptrace(request: int, pid: int, value: int = 0) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    return libc.ptrace(request, pid, None, value)


def killed_before_call(work: Callable[[], object], number: int) -> bool:
    """Run `work` in a child and kill it as it enters its system call `number` (from 1); False if it made fewer.

    Raises: OSError where this system does not let a process trace its child.
    """
    pid = os.fork()
    if pid == 0:
        if _ptrace(TRACEME, 0) != 0:
            os._exit(99)
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status):
        raise OSError("no tracing here")
    _ptrace(SETOPTIONS, pid, SYSTEM_CALLS_APART | KILL_ON_EXIT)
    entered, inside, passed_on = 0, False, 0
    while True:
        _ptrace(SYSCALL, pid, passed_on)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return False
        passed_on = 0
        if os.WSTOPSIG(status) != IN_A_CALL:
            passed_on = os.WSTOPSIG(status)
            continue
        inside = not inside
        entered += inside
        if inside and entered == number:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return True
