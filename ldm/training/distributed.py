"""Processes, devices and precision: what accelerate is set up with."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import GradientAccumulationPlugin
from diffusers import ModelMixin
from torch import nn

from ldm.config.settings import TrainOptions
from ldm.training import sharding_options, world
from ldm.training.devices import asked_for_cpu
from ldm.training.launcher import asked_precision, launcher_words, option
from ldm.training.optimizer import native_bf16
from ldm.utils.errors import UserError, out_of_memory
from ldm.utils.runtime import launched_processes, usable_cores

ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config (tensor, context or expert parallelism)",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}


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


def start_world() -> PartialState:
    """Join the processes that the launcher started. Without CUDA, several processes means several CPU processes."""
    check_engine()
    sharding_options.take_over()
    several = launched_processes() > 1
    patience = {"timeout": world.PATIENCE} if several else {}
    state = PartialState(cpu=asked_for_cpu() or (several and not torch.cuda.is_available()), **patience)
    check_world(state.num_processes)
    world.join(state)
    return state


def end_world() -> None:
    """Leave the other processes: at the end of a program, not of a stage."""
    world.leave()
    PartialState().destroy_process_group()


def check_engine() -> None:
    """Raises: UserError for a choice of `accelerate config` that would be ignored, or fail in the middle."""
    for variable, name in ENGINES.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            raise UserError(
                f"accelerate launch asks for {name}, which is not supported: processes hold the complete model (DDP) "
                "or shards of it (FSDP 2); answer no to it in `accelerate config`, or use a file of configs/accelerate"
            )


def check_world(started: int) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process without a word; say so instead."""
    given = option(launcher_words(), "num_processes") or ""
    asked = int(given) if given.isdecimal() else 1
    if asked > 1 and started == 1:
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
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                find_unused_parameters=find_unused_parameters,
                gradient_as_bucket_view=True,  # one copy of the gradients, not two
            )
        ],
    )
    processes, accumulation = accelerator.num_processes, train.gradient_accumulation_steps
    if train.batch_size % (processes * accumulation):
        raise UserError(
            f"train.batch_size {train.batch_size} is the global batch and must be a multiple of processes x "
            f"gradient_accumulation_steps = {processes} x {accumulation}"
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


def explain_out_of_memory(error: Exception, train: TrainOptions, processes: int, step: int) -> Exception:
    """A UserError with what to lower, where memory ran out; any other error unchanged."""
    if not out_of_memory(error):
        return error
    at_once = train.batch_size // (processes * train.gradient_accumulation_steps)
    return UserError(
        f"out of memory in step {step} with {at_once} items at once (train.batch_size {train.batch_size}): "
        f"raise train.gradient_accumulation_steps (now {train.gradient_accumulation_steps}), set "
        "train.gradient_checkpointing true, or lower data.resolution or the model's width, then --resume auto"
    )
