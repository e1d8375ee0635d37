"""Processes, devices and precision: what accelerate is set up with."""

import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import ModelMixin
from torch import nn

from ldm.training.optimizer import native_bf16
from ldm.utils.errors import UserError


def precision(wanted: str, device: torch.device) -> str:
    """'auto' as the best the device does natively: bf16 where the GPU or the CPU (AMX, AVX512) has it, else fp32."""
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("train.mixed_precision fp16 needs a GPU; on a CPU use auto, bf16 or no")
    if wanted != "auto":
        return wanted
    return "bf16" if native_bf16(device) else "no"


def checkpoint_gradients(module: nn.Module) -> nn.Module:
    """Have every part that can compute its activations again in the backward pass, to keep fewer; returns `module`."""
    for part in module.modules():
        if isinstance(part, ModelMixin) and part._supports_gradient_checkpointing:
            part.enable_gradient_checkpointing()
    return module


def start_world() -> PartialState:
    """Join the processes that the launcher started. Without CUDA, several processes means several CPU processes."""
    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    patience = {"timeout": timedelta(hours=12)} if several else {}  # others wait while one builds the caches
    state = PartialState(cpu=asked_for_cpu or (several and not torch.cuda.is_available()), **patience)
    check_world(state.num_processes)
    return state


def check_world(world: int) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process without a word; say so instead."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode().split("\0")
        asked = int(words[words.index("--num_processes") + 1])
    except (OSError, ValueError, IndexError):
        return
    if asked > 1 and world == 1 and any("accelerate" in word for word in words):
        raise UserError(
            f"accelerate was asked for {asked} processes and started 1; on CPU use: "
            f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {asked} ..."
        )
