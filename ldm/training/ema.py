"""Exponential moving average (EMA) of the weights, with a context manager that swaps it in."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class EMA(EMAModel):
    """diffusers' EMA and its warm-up, updated in one pass over memory: ema += (1 - decay) (weights - ema).

    With `offload`, the EMA of weights on a GPU lies in the memory of the CPU. A step sends it the weights and does not
    wait for them: they are taken in by the next one, or by `settle`, which whoever reads the EMA calls first.

    Attributes: `shadow_params`, in the order of the parameters, and `optimization_step`.
    """

    shadow_params: list[Tensor]

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float, offload: bool = False):
        super().__init__(parameters, decay=decay)
        self.sent: list[Tensor] = []  # weights that are on their way, or have arrived
        self.weight = 0.0  # what they count
        self.arrived: Any = None  # the event of their arrival, until they are taken in
        if offload and any(one.is_cuda for one in self.shadow_params):
            self.shadow_params = [one.cpu() for one in self.shadow_params]
            self.sent = [torch.empty_like(one).pin_memory() for one in self.shadow_params]

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        self.settle()
        self.optimization_step += 1
        weight = 1 - self.get_decay(self.optimization_step)
        if not self.sent:
            return torch._foreach_lerp_(self.shadow_params, list(parameters), weight)
        for target, parameter in zip(self.sent, parameters, strict=True):
            target.copy_(parameter, non_blocking=True)
        self.weight, self.arrived = weight, torch.cuda.Event()
        self.arrived.record()

    @torch.no_grad()
    def settle(self) -> None:
        """Take in the weights of the last step, where they are not yet."""
        if self.arrived is not None:
            self.arrived.synchronize()
            torch._foreach_lerp_(self.shadow_params, self.sent, self.weight)
            self.arrived = None

    @contextmanager
    def swapped_in(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Within the block the parameters have the EMA values; afterwards exactly their own again."""
        self.settle()
        own = list(parameters)
        _exchange(own, self.shadow_params)
        try:
            yield
        finally:
            _exchange(own, self.shadow_params)


@torch.no_grad()
def _exchange(some: list[nn.Parameter], others: list[Tensor]) -> None:
    """Swap values one tensor at a time: no second copy of a model is held."""
    for one, other in zip(some, others, strict=True):
        held = one.clone()
        one.copy_(other)
        other.copy_(held)
