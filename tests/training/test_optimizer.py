"""The optimizers: which weights Muon turns, and that it turns them as torch's own does."""

import os
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState
from forked import world
from torch import distributed, nn

from ldm.config.settings import LdmSettings, OptimOptions
from ldm.training import optimizer as ours
from ldm.training.cost_estimate import _update_seconds
from ldm.training.optimizer import (
    _bf16_pays,
    build_optimizer,
    hidden_matrices,
    lr_factor,
    native_bf16,
    orthogonal,
    parameter_groups,
)


def test_weight_decay_touches_matrices_only():
    decayed, plain = parameter_groups(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), 0.1)
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.1
    assert [p.ndim for p in plain["params"]] == [1, 1, 1] and plain["weight_decay"] == 0


@pytest.mark.parametrize("shape", [(24, 24), (16, 144), (200, 32)])
def test_singular_values_come_near_one(shape):
    generator = torch.Generator().manual_seed(0)
    found = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=generator)).float())
    assert found.min() > 0.3 and found.max() < 1.3  # the iteration is quick and not exact
    aligned = orthogonal(torch.diag(torch.tensor([3.0, 2.0, 1.0]))).float()
    assert aligned.diagonal().min() > 0.5 and (aligned - aligned.diagonal().diag()).abs().max() < 1e-3


def test_a_matrix_takes_the_steps_of_torchs_own_muon():
    torch.manual_seed(0)
    layer, theirs = nn.Linear(32, 48, bias=False), nn.Linear(32, 48, bias=False)
    theirs.load_state_dict(layer.state_dict())
    first = layer.weight.detach().clone()
    own = build_optimizer(layer, OptimOptions(name="muon", lr=0.02, weight_decay=0.1))
    stock = torch.optim.Muon(theirs.parameters(), 0.02, 0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        x = torch.randn(64, 32)  # of full rank: nothing else decides what rounding becomes
        for each, optimizer in ((layer, own), (theirs, stock)):
            optimizer.zero_grad()
            each(x).square().mean().backward()
            optimizer.step()
    moved = (theirs.weight - first).norm()
    assert (layer.weight - theirs.weight).norm() < 0.05 * moved  # theirs is in bf16 whatever the device


def test_tables_vectors_and_narrow_layers_are_left_to_adamw():
    net = nn.Sequential(
        nn.Embedding(40, 32), nn.Linear(32, 32), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 4, 3), nn.LayerNorm(32)
    )
    assert hidden_matrices(net) == {net[1].weight, net[2].weight}
    muon = build_optimizer(net, OptimOptions(name="muon"))
    by_name = {p: name for name, p in net.named_parameters()}
    turned = {by_name[p] for group in muon.param_groups if group["orthogonal"] for p in group["params"]}
    assert turned == {"1.weight", "2.weight"}
    assert sorted(by_name[p] for group in muon.param_groups for p in group["params"]) == sorted(by_name.values())


def trained_net() -> tuple[nn.Module, list[int]]:
    """A small network after two of Muon's steps, and how many numbers this process made orthogonal in each call."""
    torch.manual_seed(0)
    net, numbers = nn.Sequential(nn.Linear(32, 48), nn.Conv2d(16, 32, 3), nn.Linear(48, 48), nn.Linear(48, 8)), []
    muon = build_optimizer(net, OptimOptions(name="muon", lr=0.02))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "orthogonal", lambda matrix: numbers.append(matrix.numel()) or orthogonal(matrix))
        for _ in range(2):
            for parameter in net.parameters():
                parameter.grad = torch.randn_like(parameter)
            muon.step()
    return net, numbers


def one_of_two(folder):
    distributed.init_process_group("gloo")
    net, numbers = trained_net()
    torch.save((net.state_dict(), numbers), folder / os.environ["RANK"])
    distributed.destroy_process_group()


def test_processes_divide_the_work_and_take_the_steps_of_one(tmp_path):
    children = world(partial(one_of_two, tmp_path), tmp_path / "said", 2)
    assert [child.wait() for child in children] == [0, 0], [child.said() for child in children]
    net, numbers = trained_net()
    found = [torch.load(tmp_path / rank) for rank in "01"]
    for weights, _ in found:
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in weights.items())
    assert sorted(found[0][1] + found[1][1]) == sorted(numbers) and all(done for _, done in found)


def test_a_plan_counts_the_work_of_one_process(monkeypatch):
    def calls() -> int:
        found = []
        with monkeypatch.context() as patch:
            patch.setattr(ours, "orthogonal", lambda matrix: found.append(1) or orthogonal(matrix))
            net = nn.Sequential(*(nn.Linear(32, 32) for _ in range(8)))
            _update_seconds(net, net, LdmSettings(optim=OptimOptions(name="muon")))
        return len(found)

    assert calls() == 16  # two steps
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert calls() == 4


def test_a_kernel_steps_by_the_learning_rate_whatever_its_layout():
    torch.manual_seed(0)
    steps = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        conv = nn.Conv2d(16, 32, 3).to(memory_format=layout)
        before = conv.weight.detach().clone()
        conv(torch.randn(2, 16, 8, 8)).square().mean().backward()
        build_optimizer(conv, OptimOptions(name="muon", lr=0.01, weight_decay=0.0)).step()
        steps.append(conv.weight.detach() - before)
    assert steps[0].square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.3)
    torch.testing.assert_close(*steps, rtol=0.05, atol=1e-4)


@pytest.fixture(autouse=True)
def another_precision_in_one_process():
    """accelerate holds its first precision for the life of a process; a test is a life of its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_learning_rates_by_formula():
    wsd = OptimOptions(schedule="wsd", warmup_steps=10, decay_fraction=0.2)
    assert [lr_factor(wsd, s, 100) for s in (0, 9, 50, 79, 90, 99)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0.05])
    cosine = OptimOptions(schedule="cosine", warmup_steps=0)
    assert lr_factor(cosine, 50, 100) == pytest.approx(0.5)
    assert lr_factor(OptimOptions(schedule="constant", warmup_steps=0), 99, 100) == 1


@pytest.mark.parametrize("bf16, fp32, pays", [(0.6, 1.0, True), (2.0, 1.0, False)])
def test_bf16_by_avx512_is_taken_where_it_is_not_slower(monkeypatch, bf16, fp32, pays):
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    seconds = iter([[bf16, 9.0], [fp32, 9.0]])  # the first repetitions are not counted
    monkeypatch.setattr("ldm.training.optimizer.timeit.repeat", lambda *args, **kwargs: next(seconds))
    _bf16_pays.cache_clear()
    assert native_bf16(torch.device("cpu")) == pays
    _bf16_pays.cache_clear()
