"""The moving average of the weights, and looking through it at the model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class EMA(EMAModel):
    """diffusers' average and its warm-up, updated in one pass over memory: average += (1 - decay) (weights - average).

    Attributes: `shadow_params`, in the order of the parameters, and `optimization_step`.
    """

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        self.optimization_step += 1
        torch._foreach_lerp_(self.shadow_params, list(parameters), 1 - self.get_decay(self.optimization_step))

    @contextmanager
    def swapped_in(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Within the block the parameters hold the averages; afterwards exactly their own values again."""
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
