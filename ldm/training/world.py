"""What several processes of a training tell one another, beside gradients. With one process nothing is told.

A process may have a disk of its own. The main process decides, and what differs elsewhere ends all of them.
"""

import json
import os
import re
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from torch import distributed

from ldm.training.watchdog import Watchdog
from ldm.utils.errors import UserError

PATIENCE = timedelta(hours=12)  # others wait while one builds the caches
LOST = re.compile(
    r"^Dist|gloo|NCCL|Connection (closed|reset)|Broken pipe|Timed out waiting|process group", re.IGNORECASE
)
LOST_SECONDS = 5.0  # in which the watchdog may learn the reason


class World:
    """What several processes share beside gradients: a group on the CPU, torch's store, and a watchdog."""

    def __init__(self, state: PartialState):
        self.rank, self.size = state.process_index, state.num_processes
        self.is_main, self.first_of_node = state.is_main_process, state.is_local_main_process
        self.group = distributed.new_group(backend="gloo", timeout=PATIENCE)  # so that no GPU has to be waited for
        self.groups: dict[str, distributed.ProcessGroup] = {}
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives its restarts
        store = distributed.distributed_c10d._get_default_store()
        self.store = distributed.PrefixStore(f"ldm-{attempt}", store.clone())
        self.asked = 0
        self.watchdog = Watchdog(distributed.PrefixStore(f"ldm-{attempt}", store.clone()), self.rank, self.size)
        self.watchdog.listen()
        self.watchdog.start()

    def gather(self, text: str) -> list[str]:
        """A text of each process, in each of them."""
        self.asked += 1
        keys = [f"told-{self.asked}-{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], text)
        self.store.wait(keys, PATIENCE)
        return [value.decode() for value in self.store.multi_get(keys)]


_world: World | None = None  # None where there is one process


def join(state: PartialState) -> None:
    """Begin to talk, where there are several processes and this has not been done."""
    global _world
    if state.num_processes > 1 and _world is None:
        _world = World(state)


def leave() -> None:
    """Tell the others that this process has done its part."""
    global _world
    if _world is not None:
        _world.watchdog.stop()
        _world = None


@contextmanager
def together() -> Iterator[None]:
    """What several processes do: an error in one ends all, each with a line that says which process and why.

    Raises: UserError for what happened elsewhere.
    """
    try:
        yield
    except Exception as error:
        if _world is None:
            raise
        lost = isinstance(error, RuntimeError) and bool(LOST.search(f"{type(error).__name__} {error}"))
        if reason := _world.watchdog.reason(LOST_SECONDS if lost else 0.0):
            raise UserError(reason) from error
        if lost:
            raise UserError(
                f"process {_world.rank + 1} of {_world.size} lost the others: one of them was ended, or the network "
                "is down; --resume auto continues from the last checkpoint"
            ) from error
        _world.watchdog.report(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        raise


def enter(text: str, step: int = 0, order: int = 0, alone: bool = False, uncut: bool = False) -> None:
    """Tell the other processes where this one is: see `ldm.training.watchdog.Place`."""
    if _world is not None:
        _world.watchdog.enter(text, step, order, alone, uncut)


def end_after(minutes: float) -> None:
    """End a training in which no process gets on for so long; 0 = never."""
    if _world is not None:
        _world.watchdog.hang_seconds = 60 * minutes or float("inf")


def from_main(make: Callable[[], str]) -> str:
    """What the main process makes, in every process. The others may ask later: nobody waits for them."""
    if _world is None:
        return make()
    _world.asked += 1
    key = f"made-{_world.asked}"
    if _world.is_main:
        _world.store.set(key, make())
    _world.store.wait([key], PATIENCE)
    return _world.store.get(key).decode()


def agree(facts: Mapping[str, str], advice: str) -> None:
    """Raises: UserError, in every process, if one has other facts than the main process."""
    if _world is None:
        return
    main = json.loads(from_main(lambda: json.dumps(facts)))
    name = next((name for name in sorted(main.keys() | facts.keys()) if main.get(name) != facts.get(name)), None)
    complaint = (
        ""
        if name is None
        else (
            f"{name} is {facts.get(name, 'missing')} for process {_world.rank + 1} of {_world.size} on "
            f"{socket.gethostname()} and {main.get(name, 'missing')} for the main process: {advice}"
        )
    )
    if first := first_of_all(complaint):
        raise UserError(first)


def first_of_all(text: str) -> str:
    """The first text of all processes, by their order, that is not empty."""
    return text if _world is None else next(filter(None, _world.gather(text)), "")


def group() -> distributed.ProcessGroup | None:
    """All processes, to talk on the CPU."""
    return None if _world is None else _world.group


def group_of(name: str) -> distributed.ProcessGroup | None:
    """All processes, to talk on the CPU about one thing, in another thread; all have to ask for it at the same time."""
    if _world is None:
        return None
    if name not in _world.groups:
        _world.groups[name] = distributed.new_group(backend="gloo", timeout=PATIENCE)
    return _world.groups[name]


def own_rank() -> int:
    """The number of this process, 0 for the main one."""
    return 0 if _world is None else _world.rank


def any_of(flag: int) -> int:
    """The greatest of the flags of all processes."""
    if _world is None:
        return flag
    greatest = torch.tensor(flag)
    distributed.all_reduce(greatest, distributed.ReduceOp.MAX, group=_world.group)
    return int(greatest)


def numbers_of_main(numbers: torch.Tensor) -> torch.Tensor:
    """The numbers that the main process has, on the CPU, in every process."""
    if _world is not None:
        distributed.broadcast(numbers, 0, group=_world.group)
    return numbers


def writes_to(folder: Path) -> bool:
    """Whether this process writes what is the same in all: the main one, and the first of a node with its own disk."""
    if _world is None:
        return True
    probe = folder / f".{from_main(lambda: uuid.uuid4().hex)}"
    if _world.is_main:
        probe.touch()
    distributed.barrier(group=_world.group)
    shared = probe.exists()
    distributed.barrier(group=_world.group)
    if _world.is_main:
        probe.unlink()
    return _world.is_main or (_world.first_of_node and not shared)
