"""AdamW in 8 bits: with a stand-in for bitsandbytes, and with the library itself where it is installed."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from ldm.config.settings import OptimOptions, TrainOptions, VaeSettings
from ldm.training.optimizer import build_optimizer
from ldm.training.trainer import Trainer
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.errors import UserError
from tests.training.test_trainer import LineTask, assert_equal, losses

CPU = torch.device("cpu")
INSTALLED = importlib.util.find_spec("bitsandbytes") is not None


class StandIn(torch.optim.Optimizer):
    """What we rely on of bitsandbytes' AdamW8bit: its state has whole numbers, bytes, scales of blocks and a code that
    all parameters share; memory is read in the order of contiguous weights.
    """

    code = torch.linspace(-1, 1, 256)

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-2):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def init_state(self, group, p, gindex, pindex):
        assert self.param_groups[gindex]["params"][pindex] is p and group is self.param_groups[gindex]
        blocks = -(-p.numel() // 256)
        self.state[p] = {"step": 0}
        for i in "12":
            self.state[p] |= {f"state{i}": torch.full_like(p, 127, dtype=torch.uint8), f"qmap{i}": self.code}
            self.state[p][f"absmax{i}"] = torch.zeros(blocks)

    @torch.no_grad()
    def step(self, closure=None):
        for g, group in enumerate(self.param_groups):
            for i, p in enumerate(group["params"]):
                if not self.state[p]:
                    self.init_state(group, p, g, i)
                self.update(group, p, self.state[p])

    def update(self, group, p, state):
        assert p.is_contiguous() and p.grad.is_contiguous() and state["state1"].is_contiguous()
        state["step"] += 1
        moments = []
        for i, (beta, value) in enumerate(zip(group["betas"], (p.grad, p.grad.square())), 1):
            scales = state[f"absmax{i}"].repeat_interleave(256)[: p.numel()].view_as(p)
            moment = torch.lerp(value, self.code[state[f"state{i}"].int()] * scales, beta)
            blocks = nn.functional.pad(moment.flatten(), (0, -p.numel() % 256)).view(-1, 256)
            state[f"absmax{i}"] = blocks.abs().amax(1)
            relative = blocks / state[f"absmax{i}"].clamp(min=1e-30)[:, None]
            codes = ((relative + 1) * 127.5).round().to(torch.uint8)
            state[f"state{i}"] = codes.flatten()[: p.numel()].view_as(p)
            moments.append(moment / (1 - beta ** state["step"]))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(group["lr"] * moments[0] / (moments[1].clamp(min=0).sqrt() + 1e-8))


def install(monkeypatch, optimizer) -> None:
    package, part = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    part.AdamW8bit = optimizer
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", part)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(params=["stand-in", pytest.param("bitsandbytes", marks=pytest.mark.skipif(not INSTALLED, reason="no"))])
def library(request, monkeypatch):
    if request.param == "stand-in":
        install(monkeypatch, StandIn)
    return request.param


class Wide(nn.Module):
    """Convolutions of more than the 4096 weights from which on the library takes 8 bits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, 16, 3), nn.Flatten(1))

    def forward(self, x, noise, progress):
        return (self.net(x[..., None, None].expand(-1, 3, 8, 8) + noise[..., None, None]) - 1).square().mean(), {}


def settings(name="adamw8bit", **train):
    options = {"num_steps": 12, "batch_size": 4, "log_every": 1, "sample_every": 0, "save_every": 4, "ema_decay": 0.9}
    options |= {"mixed_precision": "no", "report_to": ["none"]} | train
    optim = OptimOptions(warmup_steps=2, lr=2e-3, name=name)
    return VaeSettings(train=TrainOptions(**options), optim=optim)


def fit(run, resume="auto", name="adamw8bit", **train):
    task = LineTask(Wide)
    task.channels_last = True
    trainer = Trainer(task, settings(name, **train), run)
    trainer.fit(resume)
    return trainer


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_resumed_training_is_the_same_to_the_last_bit(library, precision, tmp_path):
    """In bf16 weights would lie in memory channel by channel, in another order than the moments' scales."""
    whole = fit(tmp_path / "whole", mixed_precision=precision, keep_checkpoints=9)
    middle = tmp_path / "whole" / "checkpoints" / checkpoint.name(4)
    again = fit(tmp_path / "again", resume=str(middle), mixed_precision=precision)
    assert_equal(whole, again)
    assert {s: v for s, v in losses(tmp_path / "whole").items() if s > 4} == losses(tmp_path / "again")
    groups, _ = checkpoint.load(middle)
    found = groups["optimizer"]
    assert found["state1/net.2.weight"].dtype == torch.uint8 and not any("qmap" in name for name in found)
    assert found["absmax2/net.2.weight"].shape == (27,) and found["step/net.2.weight"] == 4


def test_it_trains_about_as_adamw_does(library, tmp_path):
    ours, theirs = fit(tmp_path / "8", num_steps=40), fit(tmp_path / "32", name="adamw", num_steps=40)
    ends = [losses(tmp_path / run)[40] for run in ("8", "32")]
    assert ends[0] < 0.2 * losses(tmp_path / "8")[1] and ends[0] < 2 * ends[1] + 0.01
    assert ours.optimizer.param_groups[0]["lr"] == theirs.optimizer.param_groups[0]["lr"]


def test_where_it_is_not_installed_a_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match="^optim.name adamw8bit needs bitsandbytes .*: pip install bitsandbytes, or"):
        build_optimizer(Wide(), OptimOptions(name="adamw8bit"))


def test_where_it_does_not_work_a_line_says_so(monkeypatch):
    class Broken(StandIn):
        def step(self):
            raise NotImplementedError("no kernel\nfor this device")

    install(monkeypatch, Broken)
    with pytest.raises(UserError, match=r"^optim.name adamw8bit does not work on cpu here \(NotImpl.*no kernel\): use"):
        build_optimizer(Wide(), OptimOptions(name="adamw8bit"))
