"""Processes, devices and precision: what accelerate is set up with, and what the processes tell one another.

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
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import GradientAccumulationPlugin
from diffusers import ModelMixin
from torch import distributed, nn

from ldm.config.settings import TrainOptions
from ldm.training.launcher import asked_precision, launcher_words, option
from ldm.training.optimizer import native_bf16
from ldm.training.watchdog import Watchdog
from ldm.utils.errors import UserError, out_of_memory
from ldm.utils.runtime import usable_cores

PATIENCE = timedelta(hours=12)  # others wait while one builds the caches
ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config (tensor, context or expert parallelism)",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
LOST = re.compile(r"^Dist|gloo|NCCL|Connection (closed|reset)|Broken pipe|Timed out waiting|process group", re.IGNORECASE)
LOST_SECONDS = 5.0  # in which the watchdog may learn the reason


def precision(wanted: str, device: torch.device) -> str:
    """'auto' as the launcher asks for, else bf16 where the GPU or the CPU (AMX, AVX512) has it, else fp32."""
    asked = asked_precision() if wanted == "auto" else wanted
    if asked == "fp16" and device.type in ("cpu", "mps"):
        whose = "accelerate launch's mixed_precision" if wanted == "auto" else "train.mixed_precision"
        raise UserError(f"{whose} fp16 needs a GPU with CUDA; else use train.mixed_precision bf16 or no")
    return asked or ("bf16" if native_bf16(device) else "no")


def checkpoint_gradients(module: nn.Module) -> nn.Module:
    """Have every part that can compute its activations again in the backward pass, to keep fewer; returns `module`."""
    for part in module.modules():
        if isinstance(part, ModelMixin) and part._supports_gradient_checkpointing:
            part.enable_gradient_checkpointing()
    return module


def asked_for_cpu() -> bool:
    """Whether ACCELERATE_USE_CPU, or `accelerate launch --cpu`, keeps the training off a GPU."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def start_world() -> PartialState:
    """Join the processes that the launcher started. Without CUDA, several processes means several CPU processes."""
    global _world
    check_engine()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    patience = {"timeout": PATIENCE} if several else {}
    state = PartialState(cpu=asked_for_cpu() or (several and not torch.cuda.is_available()), **patience)
    check_world(state.num_processes)
    if state.num_processes > 1 and _world is None:
        _world = World(state)
    return state


class World:
    """What several processes share beside gradients: a group on the CPU, torch's store, and a watchdog."""

    def __init__(self, state: PartialState):
        self.rank, self.size = state.process_index, state.num_processes
        self.is_main, self.first_of_node = state.is_main_process, state.is_local_main_process
        self.group = distributed.new_group(backend="gloo", timeout=PATIENCE)  # so that no GPU has to be waited for
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


_world: World | None = None


def end_world() -> None:
    """Leave the other processes: at the end of a program, not of a stage."""
    global _world
    if _world is not None:
        _world.watchdog.stop()
        _world = None
    PartialState().destroy_process_group()


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
    complaint = "" if name is None else (
        f"{name} is {facts.get(name, 'missing')} for process {_world.rank + 1} of {_world.size} on "
        f"{socket.gethostname()} and {main.get(name, 'missing')} for the main process: {advice}"
    )
    if first := next(filter(None, _world.gather(complaint)), ""):
        raise UserError(first)


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


def check_engine() -> None:
    """Raises: UserError for a choice of `accelerate config` that would be ignored, or fail in the middle."""
    for variable, name in ENGINES.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            raise UserError(
                f"accelerate launch asks for {name}, which is not supported: every process holds the complete model "
                "(DDP); answer no to it in `accelerate config`, or use a file of configs/accelerate"
            )


def check_world(world: int) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process without a word; say so instead."""
    given = option(launcher_words(), "num_processes") or ""
    asked = int(given) if given.isdecimal() else 1
    if asked > 1 and world == 1:
        raise UserError(
            f"accelerate was asked for {asked} processes and started 1; on CPU use: "
            f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {asked} ..."
        )


def build_accelerator(train: TrainOptions, run: Path, find_unused_parameters: bool) -> Accelerator:
    """Device, precision, processes and trackers. Raises: UserError if the batch cannot be divided among processes."""
    state = start_world()
    accelerator = Accelerator(
        cpu=state.device.type == "cpu",
        mixed_precision=precision(train.mixed_precision, state.device),
        log_with=[name for name in train.report_to if name != "none"] or None,
        project_dir=run / "logs",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the trainer's own: else divided twice
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)],
    )
    world, accumulation = accelerator.num_processes, train.gradient_accumulation_steps
    if train.batch_size % (world * accumulation):
        raise UserError(
            f"train.batch_size {train.batch_size} is the global batch and must be a multiple of processes x "
            f"gradient_accumulation_steps = {world} x {accumulation}"
        )
    return accelerator


def loader_workers(wanted: int | None, device: torch.device) -> int:
    """Data loader processes: as wanted, else those that suit. On a CPU they would compete with the training.

    Captions, tokens and noise of a batch of 512 take a core a third of a second, and a GPU waits for them.
    """
    if wanted is not None or device.type != "cuda":
        return wanted or 0
    beside = int(os.environ.get("LOCAL_WORLD_SIZE") or torch.cuda.device_count())
    return max(1, min(8, usable_cores() // beside - 1))


def explain_out_of_memory(error: Exception, train: TrainOptions, world: int, step: int) -> Exception:
    """A UserError with what to lower, where memory ran out; any other error unchanged."""
    if not out_of_memory(error):
        return error
    at_once = train.batch_size // (world * train.gradient_accumulation_steps)
    return UserError(
        f"out of memory in step {step} with {at_once} items at once (train.batch_size {train.batch_size}): "
        f"raise train.gradient_accumulation_steps (now {train.gradient_accumulation_steps}), set "
        "train.gradient_checkpointing true, or lower data.resolution or the model's width, then --resume auto"
    )
