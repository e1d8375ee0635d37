"""Which device a training takes; torch is all that this imports."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def asked_for_cpu() -> bool:
    """Whether ACCELERATE_USE_CPU, or `accelerate launch --cpu`, keeps the training off a GPU."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def training_device() -> "torch.device":
    """As accelerate chooses it: CUDA, an Apple GPU, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    apple = torch.backends.mps.is_available() and not asked_for_cpu()
    return torch.device("mps" if apple else "cpu")
