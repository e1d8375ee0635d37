"""Time grids: from noise to data, and the same as in the papers and in diffusers."""

import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules

from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.time_grids import TIME_GRIDS, levels

PROCESSES = {
    "flow": SCHEDULES["flow"](),
    "shifted": SCHEDULES["flow"](3.0),
    "cosine": SCHEDULES["cosine"](),
    "zero_snr": SCHEDULES["scaled_linear"](zero_terminal_snr=True),
    "karras": SCHEDULES["karras"](),
}


def grid(name, schedule, steps):
    return TIME_GRIDS[name](schedule, steps)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", TIME_GRIDS)
def test_a_grid_falls_from_noise_to_data(name, process):
    for steps in (1, 2, 10, 37):
        times = grid(name, PROCESSES[process], steps)
        assert times.dtype == torch.float64 and times.shape == (steps + 1,) and times[-1] == 0
        assert times[0] == 1 or (name == "leading" and times[0] <= 1) or (name == "linspace" and steps == 1)
        levels(PROCESSES[process], times)  # raises unless each lies below the one before


@pytest.mark.parametrize("steps", [1, 3, 7, 20, 50, 999])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_spacings_are_those_of_diffusers(spacing, steps):
    theirs = diffusers.DDPMScheduler(timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    ours = grid(spacing, PROCESSES["cosine"], steps)
    assert ((1000 * ours[:-1] - 1).round().long() == theirs.timesteps).all()


def test_the_karras_grid_is_that_of_diffusers():
    for kind, start, end in (("scaled_linear", 0.00085, 0.012), ("linear", 1e-4, 0.02)):
        theirs = diffusers.DPMSolverMultistepScheduler(1000, start, end, kind, use_karras_sigmas=True)
        theirs.set_timesteps(12)
        alphas, sigmas = SCHEDULES[kind]().scales(grid("karras", SCHEDULES[kind](), 12))
        torch.testing.assert_close((sigmas / alphas)[:-1].float(), theirs.sigmas[:-1], rtol=2e-4, atol=0)
    theirs = diffusers.EDMEulerScheduler()
    theirs.set_timesteps(12)
    for name in ("karras", "uniform"):
        ours = [level.sigma for level in levels(PROCESSES["karras"], grid(name, PROCESSES["karras"], 12))]
        assert ours == pytest.approx(theirs.sigmas.tolist(), rel=1e-5)


def test_logsnr_steps_are_equal_and_the_published_grid_is_the_published_one():
    schedule = PROCESSES["cosine"]
    lams = [level.lam for level in levels(schedule, grid("logsnr", schedule, 12))][1:-1]
    assert np.diff(lams) == pytest.approx(np.full(10, lams[1] - lams[0]), rel=1e-6)
    stable = SCHEDULES["scaled_linear"]()
    sigmas = [math.exp(-level.lam) for level in levels(stable, grid("align_your_steps", stable, 10))]
    assert sigmas == pytest.approx(AysSchedules["StableDiffusionSigmas"], rel=1e-3)
    steps = 1000 * grid("align_your_steps", stable, 10)[:-1] - 1
    assert np.abs(steps.numpy() - AysSchedules["StableDiffusionTimesteps"]).max() < 1.5


def test_levels_are_the_schedules_own_and_the_last_is_the_data():
    for schedule in PROCESSES.values():
        first, middle, last = levels(schedule, [1.0, 0.5, 0.0])
        alpha, sigma = schedule.scales(torch.tensor(0.5, dtype=torch.float64))
        assert (middle.alpha, middle.sigma) == (alpha.item(), sigma.item())
        assert middle.lam == pytest.approx(schedule.logsnr(torch.tensor(0.5, dtype=torch.float64)).item() / 2)
        assert (last.alpha, last.sigma, last.lam) == (1.0, 0.0, math.inf)
        assert first.lam < middle.lam
    for name in ("flow", "zero_snr"):
        assert levels(PROCESSES[name], [1.0, 0.5])[0].lam == -math.inf


@pytest.mark.parametrize("times", [[0.5], [0.5, 0.6], [1.1, 0.5], [0.5, -0.1], [0.5, 0.5], torch.tensor([[1.0, 0.0]])])
def test_times_that_do_not_fall_are_refused(times):
    with pytest.raises(ValueError, match="times must"):
        levels(PROCESSES["flow"], times)
