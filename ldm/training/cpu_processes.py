"""Several processes for one training on a CPU: with one thread each they make better use of cores than threads do.

Small networks are many short operations, after each of which all threads of a process wait for one another; processes
meet once in a step. Half the batch in each of two processes is the same training (`ldm.training.data_order`).
"""

import ctypes
import logging
import os
import sys
from collections.abc import Iterable, Sequence

from ldm.utils.runtime import free_port, usable_cores

MOST = 8  # processes: beyond it the exchange of gradients takes what they gain
MEMORY = 2.5 * 2**30  # bytes that one takes, about
SAVING = 300  # seconds that a process may take for a checkpoint, once it is asked to end
PR_SET_PDEATHSIG, SIGKILL = 1, 9  # of linux/prctl.h and of signal, where it is not on Windows
STARTED = "LDM_PROCESSES"  # in the environment of those that `run` starts


def useful(batches: Iterable[int]) -> int:
    """How many processes to train in: a power of two that divides all of these batch sizes; 1 = this one.

    It is this one where processes or threads were chosen (a launcher, OMP_NUM_THREADS), and where there is a GPU.
    """
    import psutil

    from ldm.training.devices import training_device

    if {"RANK", "OMP_NUM_THREADS"} & os.environ.keys() or training_device().type != "cpu":
        return 1
    most = min(MOST, usable_cores(), psutil.virtual_memory().available // MEMORY)
    sizes = [*batches]
    count = 1
    while 2 * count <= most and all(size % (2 * count) == 0 for size in sizes):
        count *= 2
    return count


def run(count: int, words: Sequence[str]) -> int:
    """`ldm train` with these words in `count` processes of torch's launcher, on this machine; their exit code.

    A signal is passed on to them: they save and end.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = max(1, usable_cores() // count)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads), STARTED: str(os.getpid())}
    logging.disable(logging.ERROR)  # the processes say themselves why they end
    config = LaunchConfig(
        1,
        1,
        count,
        run_id="ldm",
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{free_port()}",
        rdzv_configs={"rank": 0},
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=SAVING,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "ldm.train", *words)
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        return 128 - code if code < 0 else code
    except SignalException as ended:
        return 128 + ended.sigval
    return 0


def end_with_parent() -> None:
    """Have Linux kill this process as soon as the one that started it ends, however that happens."""
    parent = os.environ.get(STARTED)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != int(parent):  # it ended before this could be asked for
        os.kill(os.getpid(), SIGKILL)
