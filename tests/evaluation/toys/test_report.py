"""Distances with closed forms, and models whose quality is known: the exact denoiser, and worse ones."""

import json
import math
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm.cli import evaluate as command
from ldm.data.toy import EightGaussians, Toy, exact_denoiser, toy_named
from ldm.diffusion.sampling import prior, sample
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.time_grids import TIME_GRIDS
from ldm.evaluation.metrics.sliced_wasserstein import sliced_wasserstein
from ldm.evaluation.toys import report as toys
from ldm.evaluation.toys.report import Plan, measure, modes_of


class Exact:
    """A pipeline with the exact denoiser of a toy; a prompt names a part."""

    defaults = {"num_inference_steps": 20, "guidance_scale": 1.0}
    scheduler = None
    networks = SimpleNamespace(config=lambda name: {"scaling_factor": 1.0})

    def __init__(self, toy: Toy, move: float = 0.0, deaf: bool = False):
        self.toy, self.move, self.deaf = toy, move, deaf

    def __call__(self, prompt, num_images_per_prompt, seed, num_inference_steps=None, **_):
        toy = self.toy
        if prompt and not self.deaf:
            toy = toy.part(prompt.removeprefix("the ").removesuffix(" mode"))
        schedule = SCHEDULES["flow"]()
        start = prior(schedule, (num_images_per_prompt, toy.dims), torch.Generator().manual_seed(seed))
        times = TIME_GRIDS["uniform"](schedule, num_inference_steps or 20)
        return SimpleNamespace(
            images=sample(exact_denoiser(toy, schedule), start, schedule, times)[..., None, None] + self.move
        )


def test_sliced_wasserstein_in_closed_form():
    """A shift by v costs |v . u| on direction u: 2 |v| / pi in the mean, |v| / sqrt(d) in the root mean square."""
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 2)))
    moved = points + torch.tensor([0.6, -0.8], dtype=torch.float64)
    assert sliced_wasserstein(points, moved, 1) == pytest.approx(2 / math.pi, rel=1e-4)
    assert sliced_wasserstein(points, moved, 2) == pytest.approx(1 / math.sqrt(2), rel=1e-9)
    assert sliced_wasserstein(points, points.flip(0)) == 0
    line = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    assert sliced_wasserstein(line, 3 * line - 1, 2) == pytest.approx((2 * line - 1).square().mean().sqrt().item())
    solid = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert sliced_wasserstein(solid, solid + 1, 2, 512) == pytest.approx(1, rel=0.1)
    with pytest.raises(ValueError, match="one shape"):
        sliced_wasserstein(points, points[:10])


def test_two_gaussians_of_other_widths_are_as_far_apart_as_their_standard_deviations():
    """W2^2 between N(0, s^2) and N(m, r^2) on a line is m^2 + (s - r)^2."""
    levels = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    normal = torch.special.ndtri(levels)[:, None]
    assert sliced_wasserstein(0.5 * normal, 2 * normal + 1) == pytest.approx(math.sqrt(1 + 1.5**2), rel=1e-3)


@pytest.mark.parametrize("name", ["8_gaussians", "mixture"])
def test_the_exact_model_is_as_good_as_fresh_data(name):
    toy = toy_named(name)
    metrics = measure(Exact(toy), toy, Plan(samples=2000, sets=3), captions=True)
    for entry in metrics["distance"].values():
        assert 0.7 < entry["ratio"] < 1.4  # 3 sets of 2000 points are a coarse measure
    found, true = metrics["nll"]["model"], metrics["nll"]["true"]
    assert abs(found["nats"] - true["nats"]) < 0.3  # 20 steps draw the modes a little too narrow
    assert metrics["modes"]["covered"] == len(toy.parts) and metrics["modes"]["worst_points"] < 3
    assert metrics["classes"]["accuracy"]["share"] > 0.99


def test_worse_models_are_found_out():
    toy, plan = EightGaussians(), Plan(samples=1000, sets=2, fresh=4)
    moved = measure(Exact(toy, move=0.1), toy, plan)
    assert moved["distance"]["W1"]["ratio"] > 1.5 and moved["nll"]["model"]["nats"] > moved["nll"]["true"]["nats"] + 0.2
    deaf = measure(Exact(toy, deaf=True), toy, plan, captions=True)
    assert deaf["classes"]["accuracy"]["share"] == pytest.approx(1 / 8, abs=0.03)
    half = measure(Exact(Toy(np.full(4, 0.25), toy.means[::2], toy.variances)), toy, plan)
    assert half["modes"]["covered"] == 4 and half["modes"]["worst_points"] > 10


def test_the_entropy_of_true_points_is_found():
    """Eight modes that hardly overlap: ln 8 and a Gaussian's entropy ln(2 pi e s^2)."""
    toy = EightGaussians()
    found = toys.nll(toy, [toys.fresh_points(toy, Plan(), j) for j in range(4)])
    expected = math.log(8) + math.log(2 * math.pi * math.e * toy.variances[0, 0])
    assert abs(found["nats"] - expected) < 4 * found["error"] + 1e-3


def test_a_point_far_from_every_mode_is_in_none():
    toy = EightGaussians()
    points = torch.from_numpy(np.concatenate([toy.means, [[0.0, 0.0], [3.0, 0.0]]]))
    assert modes_of(toy, points).tolist() == [*range(8), -1, -1]


def test_what_a_run_was_trained_on_decides_how_it_is_judged(tmp_path, monkeypatch, capsys):
    toy = EightGaussians()
    (tmp_path / "config.yaml").write_text("data: {source: toy, toy: {name: 8_gaussians, captions: true, size: 600}}\n")
    monkeypatch.setattr(toys, "load_pipeline", lambda run, device: Exact(toy))
    flow = SCHEDULES["flow"]()
    monkeypatch.setattr(toys, "process_of", lambda scheduler: SimpleNamespace(schedule=flow))
    monkeypatch.setattr(toys, "denoiser_of", lambda pipeline: exact_denoiser(toy, flow))
    given = {"quick": False, "seed": 0, "batch": 64, "steps": 10, "guidance": None, "interval": None}
    given |= {"against": None, "clip": None, "features": None, "sections": None, "lora": None, "cache_dir": tmp_path}
    args = Namespace(model=str(tmp_path), output=tmp_path / "report", samples=None, device=None, **given)
    monkeypatch.setitem(command.KNOWN, "toy", command.Suite("ldm.evaluation.toys.report", "evaluate_toy", 800))
    assert command.run(args) == 0
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["toy"] == "8_gaussians" and metrics["plan"]["samples"] == 800 and metrics["plan"]["steps"] == 10
    assert abs(metrics["likelihood"]["gap"]) < 0.01  # the exact denoiser has the true density
    said, progress = capsys.readouterr()
    assert metrics["summary"]["modes_covered"] == "8 of 8" and "8 of 8" in said
    stages = [line.split(",")[0] for line in progress.splitlines() if line.startswith("[")]
    assert stages[0] == "[1/8] set 1 of the model's points" and stages[-1] == "[8/8] likelihood" and len(stages) == 8
    assert "modes covered" in said and "{" not in said and said.endswith("metrics.json: all numbers\n")
    assert command.source_of(None) == command.source_of(tmp_path / "none") == command.source_of("user/name") == ""
