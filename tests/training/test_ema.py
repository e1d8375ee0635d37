"""The moving average is diffusers' own, and looking through it leaves no trace."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from ldm.training.ema import EMA


def test_it_follows_as_diffusers_does():
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    ours, stock = EMA(model.parameters(), decay=0.9), EMAModel(model.parameters(), decay=0.9)
    for _ in range(30):
        for parameter in model.parameters():
            parameter.data += torch.randn_like(parameter)
        ours.step(model.parameters())
        stock.step(model.parameters())
    assert ours.optimization_step == stock.optimization_step == 30
    torch.testing.assert_close(ours.shadow_params, stock.shadow_params)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kept_in_the_memory_of_the_cpu_it_is_the_same(layout):
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3).cuda().to(memory_format=layout)
    there, moved = EMA(model.parameters(), 0.9), EMA(model.parameters(), 0.9, offload=True)
    for _ in range(30):
        for parameter in model.parameters():
            parameter.data += torch.randn_like(parameter)
        there.step(model.parameters())
        moved.step(model.parameters())
    moved.settle()
    assert {one.device.type for one in moved.shadow_params} == {"cpu"}
    torch.testing.assert_close(moved.shadow_params, [one.cpu() for one in there.shadow_params])


def test_shown_only_within_the_block_even_if_it_fails():
    model = nn.Linear(2, 2)
    average = EMA(model.parameters(), decay=0.5)
    kept = [value.clone() for value in average.shadow_params]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    own = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="within"), average.swapped_in(model.parameters()):
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), kept))
        raise RuntimeError("within")
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), own))
    assert all(torch.equal(*pair) for pair in zip(average.shadow_params, kept))
