"""Exponential moving average (EMA) of the weights, with a context manager that swaps it in."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class EMA(EMAModel):
    """diffusers' EMA and its warm-up, updated in one pass over memory: ema += (1 - decay) (weights - ema).

    Attributes: `shadow_params`, in the order of the parameters, and `optimization_step`.
    """

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        self.optimization_step += 1
        torch._foreach_lerp_(self.shadow_params, list(parameters), 1 - self.get_decay(self.optimization_step))

    @contextmanager
    def swapped_in(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Within the block the parameters have the EMA values; afterwards exactly their own again."""
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
