"""Precision and batches, as devices and processes allow."""

import json
import re
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from ldm.config.settings import OptimOptions, TrainOptions, VaeSettings
from ldm.training.data_order import batch_noise
from ldm.training.distributed import ENGINES, check_engine, loader_workers, precision, start_world
from ldm.training.trainer import Trainer
from ldm.utils.assets import shipped_configs
from ldm.utils.errors import UserError


@pytest.fixture(autouse=True)
def another_precision_in_one_process():
    """accelerate holds its first precision for the life of a process; a test is a life of its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Line(nn.Module):
    """Fits y = 3 x - 1 under noise and dropout, so that every source of randomness matters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x, noise, progress):
        loss = (self.net(x) + 0.1 * noise - (3 * x - 1)).square().mean()
        return loss, {"loss_copy": loss}


class Picture(nn.Module):
    """A convolution, so that the layout of memory matters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.SiLU(), nn.Conv2d(16, 16, 1), nn.SiLU(), nn.Conv2d(16, 3, 3))

    def forward(self, x, noise, progress):
        return (self.net(x[..., None, None].expand(-1, 3, 8, 8) + noise[..., None, None])).square().mean(), {}


class LineTask:
    fingerprints = {"data": "ten points"}
    num_samples, weights, buckets = 10, None, None
    find_unused_parameters = False

    def __init__(self, module=Line):
        self.module = module()
        self.model = self.module.net
        self.channels_last = module is Picture
        self.reports = 0

    def batch(self, samples, rows):
        x = torch.tensor([[sample.index / 10 + 0.03 * (sample.epoch % 2)] for sample in samples])
        return {"x": x, "noise": batch_noise(rows, (1,), 0)}

    def report(self, folder, label):
        self.reports += 1
        torch.rand(7)  # would disturb training if the loop's randomness were not its own
        with torch.no_grad():
            return {"loss": self.module(torch.ones(4, 1), torch.zeros(4, 1), 0.0)[0].item()}

    def finish(self, folder):
        (folder / "weights.json").write_text(json.dumps([p.sum().item() for p in self.model.parameters()]))


def settings(**train):
    options = {"num_steps": 12, "batch_size": 4, "log_every": 1, "sample_every": 0, "save_every": 4} | train
    options = {"mixed_precision": "no", "report_to": ["none"], "ema_decay": 0.9} | options
    optim = OptimOptions(warmup_steps=2, lr=2e-2, name=options.pop("optimizer", "adamw"))
    return VaeSettings(train=TrainOptions(**options), optim=optim)


def weights(trainer):
    averaged = trainer.ema.shadow_params if trainer.train.ema_decay else []
    return [p.detach().clone() for p in trainer.task.module.parameters()] + list(averaged)


def test_precision_is_what_was_asked_for():
    cpu = torch.device("cpu")
    assert precision("no", cpu) == "no" and precision("bf16", cpu) == "bf16"
    assert precision("auto", torch.device("mps")) == "no"
    for device in (cpu, torch.device("mps")):
        with pytest.raises(UserError, match="needs a GPU with CUDA"):
            precision("fp16", device)


@pytest.mark.parametrize("amx, avx512, found", [(False, False, "no"), (True, False, "bf16"), (False, True, "bf16")])
def test_a_cpu_that_has_bf16_uses_it(monkeypatch, amx, avx512, found):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr("ldm.training.optimizer._bf16_pays", lambda: True)
    assert precision("auto", torch.device("cpu")) == found


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    with pytest.raises(UserError, match="multiple of processes"):
        Trainer(LineTask(), settings(batch_size=5, gradient_accumulation_steps=2), tmp_path)


@pytest.mark.parametrize(
    ("variable", "named"),
    [("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron"), ("PARALLELISM_CONFIG", "parallelism")],
)
def test_an_engine_that_is_not_supported_is_refused_by_name(monkeypatch, variable, named):
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    with pytest.raises(UserError, match=f"asks for .*{named}.*not supported.*configs/accelerate"):
        start_world()
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "false")
    check_engine()


def test_every_variable_of_an_engine_is_one_that_accelerate_knows():
    import accelerate

    sources = [path.read_text() for path in Path(accelerate.__file__).parent.rglob("*.py")]
    assert all(any(f'"{variable}"' in source for source in sources) for variable in ENGINES)


@pytest.mark.parametrize("path", sorted((shipped_configs() / "accelerate").glob("*.yaml")), ids=lambda path: path.name)
def test_launcher_files_are_read_and_ask_for_what_is_supported(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.distributed_type in ("NO", "MULTI_GPU", "FSDP") and not config.deepspeed_config
    assert config.fsdp_config.get("fsdp_version") == (2 if config.distributed_type == "FSDP" else None)
    words = re.findall(r"--config_file (\S+)", path.read_text())
    assert [Path(word).name for word in words] == [path.name]


def test_a_gpu_gets_workers_and_a_cpu_none(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("ldm.training.distributed.usable_cores", lambda: 32)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert loader_workers(None, cpu) == 0 and loader_workers(None, cuda) == 3
    assert loader_workers(5, cpu) == loader_workers(5, cuda) == 5 and loader_workers(0, cuda) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert loader_workers(None, cuda) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert loader_workers(None, cuda) == 1
