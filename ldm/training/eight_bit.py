"""AdamW whose moments take one byte each instead of four, by bitsandbytes (optional).

Blocks of 256 numbers share a scale (Dettmers et al. 2022, arXiv 2110.02861); small tensors stay in float32.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ldm.config.settings import OptimOptions
from ldm.utils.errors import UserError

CODES = ("qmap1", "qmap2")  # what the 256 values of a byte stand for: the library knows them


def check_there(device: torch.device) -> None:
    """Raises: UserError, in one line, where the optimizer is not installed or does not work on the device."""
    name = "optim.name adamw8bit"
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(f"{name} needs bitsandbytes ({error}): pip install bitsandbytes, or use adamw") from error
    probe = nn.Parameter(torch.zeros(4096, device=device))
    probe.grad = torch.zeros_like(probe)
    try:
        AdamW8bit([probe]).step()
    except Exception as error:  # of the library's own: each device and version has others
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{name} does not work on {device.type} here ({reason}): use adamw") from error


def build(groups: list[dict], optim: OptimOptions) -> torch.optim.Optimizer:
    """The optimizer of these groups. Raises: UserError where there is none."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    check_there(parameters[0].device)
    from bitsandbytes.optim import AdamW8bit

    for parameter in parameters:  # its kernels go through memory in this order, and checkpoints too
        parameter.data = parameter.data.contiguous()
    return AdamW8bit(groups, lr=optim.lr, betas=optim.betas)


def restore(optimizer: Any, parameter: nn.Parameter, moments: dict[str, Tensor]) -> None:
    """Give a parameter its moments of a checkpoint."""
    places = ((g, i, one) for g, group in enumerate(optimizer.param_groups) for i, one in enumerate(group["params"]))
    group, index = next((g, i) for g, i, one in places if one is parameter)
    optimizer.init_state(optimizer.param_groups[group], parameter, group, index)
    state = optimizer.state[parameter]
    for key, value in moments.items():
        if key == "step":
            state[key] = int(value)
        else:
            state[key].copy_(value)
