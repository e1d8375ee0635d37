"""Every exported scheduler still tells the noise process it was made from."""

import pytest
import torch

from ldm.config.settings import NoiseOptions
from ldm.diffusion.schedules import NoiseProcess
from ldm.pipelines.diffusers_schedulers import export_scheduler
from ldm.pipelines.stock_noise import process_of

OPTIONS = [
    {},
    {"shift": 3.0},
    *({"process": name, "prediction_type": "epsilon"} for name in ("linear", "scaled_linear", "cosine", "sigmoid")),
    {"process": "linear", "prediction_type": "v_prediction", "zero_terminal_snr": True},
    {"process": "cosine", "prediction_type": "sample", "shift": 2.0},
    {"process": "karras", "prediction_type": "v_prediction"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_schedule_prediction_and_times_come_back(options):
    noise = NoiseOptions(**options)
    expected, scheduler = NoiseProcess(**noise.model_dump()), export_scheduler(noise)
    found = process_of(scheduler)
    times = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    assert found.prediction_type == expected.prediction_type
    torch.testing.assert_close(found.schedule.logsnr(times), expected.schedule.logsnr(times), atol=2e-2, rtol=1e-3)
    torch.testing.assert_close(found.schedule.timestep(times), expected.schedule.timestep(times), atol=1e-3, rtol=1e-5)
    scheduler.set_timesteps(10)
    starts = found.schedule.from_timestep(scheduler.timesteps.double())
    assert (starts.diff() < 0).all() and starts.min() >= 0 and 0.99 < starts[0] < 1.01
