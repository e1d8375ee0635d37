"""Devices without float64, which Apple GPUs are: what is computed in it is computed on the CPU, and comes back."""

import pytest
import torch

from ldm.diffusion import schedules
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.schedules import SCHEDULES, in_double


class OnGpu(torch.Tensor):
    """A tensor that says it is on an Apple GPU, and has no float64 there."""

    @property
    def device(self):
        return torch.device("mps")

    def double(self):
        raise TypeError("the MPS framework doesn't support float64")

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def to(self, *args, **options):
        return self.as_subclass(torch.Tensor).to(*args, **options)


@pytest.fixture
def moved(monkeypatch):
    """Tensors that went back to the device."""
    found, real = [], torch.Tensor.to

    def to(self, *args, **options):
        if args and isinstance(args[0], OnGpu):
            found.append(self)
            return real(self, args[0].dtype)
        return real(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    return found


def test_float64_is_on_the_cpu_where_the_device_has_none():
    t = torch.rand(3)
    assert torch.equal(in_double(t.as_subclass(OnGpu)), t.double()) and torch.equal(in_double(t), t.double())
    with pytest.raises(TypeError):
        t.as_subclass(OnGpu).double()


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_works_without_float64(moved, name):
    t = torch.linspace(0.05, 0.95, 7)
    there, schedule = t.as_subclass(OnGpu), SCHEDULES[name](1.0)
    for found, wanted in zip(schedule.scales(there), schedule.scales(t), strict=True):
        assert torch.equal(found.as_subclass(torch.Tensor), wanted)
    logsnr = schedule.logsnr(t)
    assert torch.equal(schedule.time(logsnr.as_subclass(OnGpu)).as_subclass(torch.Tensor), schedule.time(logsnr))
    assert bool(moved) == (name in schedules.TABLES)


@pytest.mark.parametrize("weight", ["min_snr", "uniform"])
def test_loss_weights_work_without_float64(moved, weight):
    process, t = NoiseProcess(weight=weight), torch.linspace(0.05, 0.95, 7)
    found = process.loss_weight(t.as_subclass(OnGpu))
    torch.testing.assert_close(found.as_subclass(torch.Tensor), process.loss_weight(t), rtol=0, atol=0)
