"""The times that are trained on follow their densities."""

import itertools
import math

import pytest
import torch
from noise_cases import PREDICTED, inner_times

from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.time_sampling import TIME_DENSITIES


@pytest.mark.parametrize("name, process", list(itertools.product(TIME_DENSITIES, ("flow", "cosine", "karras"))))
def test_times_lie_where_sampling_goes(name, process):
    drawn = NoiseProcess(process, PREDICTED[process], timesteps=name)
    t = drawn.draw_times(4096, torch.Generator().manual_seed(0))
    assert t.dtype == torch.float32 and t.min() >= drawn.schedule.first_time and t.max() <= 1


def test_times_follow_their_laws():
    def draw(name, **options):
        return NoiseProcess(timesteps=name, **options).draw_times(4096, torch.Generator().manual_seed(0)).double()

    uniform = draw("uniform")
    assert ((uniform.sort().values * 4096).floor() == torch.arange(4096)).all()  # one in each stratum
    loose = draw("uniform", stratified=False)
    assert ((loose * 4096).floor().unique().numel()) < 3000 and abs(loose.mean() - 0.5) < 0.02
    normal = draw("logit_normal").logit()
    assert abs(normal.mean()) < 0.01 and abs(normal.std() - 1) < 0.02
    # mode of cosmap: density 2 / (pi (1 - 2t + 2t^2)), so a quarter of the mass lies below t = 1 - 1/(tan(pi/8) + 1)
    assert (draw("cosmap") < 1 - 1 / (math.tan(math.pi / 8) + 1)).double().mean() == pytest.approx(0.25, abs=1e-3)
    karras = NoiseProcess("karras", "v_prediction", timesteps="log_normal")
    sigma = karras.schedule.scales(karras.draw_times(4096, torch.Generator().manual_seed(0)).double())[1]
    assert abs(sigma.log().mean() + 1.2) < 0.02 and abs(sigma.log().std() - 1.2) < 0.02


def test_shifted_flow_times_are_the_published_map():
    plain, shifted = SCHEDULES["flow"](), SCHEDULES["flow"](3.0)
    t = inner_times()
    moved = 3 * t / (1 + 2 * t)
    torch.testing.assert_close(shifted.scales(t)[1], plain.scales(moved)[1])
    torch.testing.assert_close(shifted.timestep(t), 1000 * moved)


def test_a_learned_variance_is_trained_at_whole_steps():
    t = NoiseProcess("linear", "epsilon", learned_variance=True).draw_times(512, torch.Generator().manual_seed(0))
    torch.testing.assert_close((1000 * t).round() / 1000, t)
    assert t.min() >= 0.001 and t.max() <= 1
