"""The loss at every time: closed forms against samples, networks whose loss is known, and training left alone."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from ldm.config.settings import LdmSettings
from ldm.data import Splits
from ldm.diffusion.parameterization import convert
from ldm.diffusion.process import NoiseProcess, expand_to
from ldm.evaluation.loss_by_time import (
    Plan,
    bin_edges,
    choose_items,
    denoising_losses,
    exchanged_captions,
    measure,
    trivial_losses,
)
from ldm.models.identity_autoencoder import IdentityAutoencoder
from ldm.training.tasks.denoising import denoising_task
from ldm.training.trainer import Trainer

PROCESSES = [("flow", "flow"), ("linear", "epsilon"), ("cosine", "sample"), ("cosine", "v_prediction")]
PROCESSES.append(("karras", "v_prediction"))


class Points:
    """Two channels, means 1 and -0.5, deviations 2 and 0.5; the caption says the sign of the first."""

    resolution, channels, has_captions = 1, 2, True

    def __init__(self, count, seed=0):
        noise = np.random.default_rng(seed).standard_normal((count, 2))
        self.points = (np.array([1.0, -0.5]) + noise * np.array([2.0, 0.5])).astype(np.float32)

    def __len__(self):
        return len(self.points)

    def image(self, i):
        return self.points[i].reshape(1, 1, -1)

    def caption(self, i, rng):
        return ("left", "right")[int(self.points[i, 0] > 0)]


class Ends(Points):
    """Only -2 and 2, in turn."""

    channels = 1

    def __init__(self, count):
        self.points = np.array([[2.0 if i % 2 else -2.0] for i in range(count)], np.float32)


def pipeline_of(predict, channels=2):
    """`predict(x_t, t, word numbers)`; text states are -1 for 'left', 1 for 'right' and 0 for the rest."""
    numbers = {"left": -1.0, "right": 1.0}
    return SimpleNamespace(
        vae=IdentityAutoencoder(channels, channels, channels),
        device=torch.device("cpu"),
        dtype=torch.float32,
        encode_prompt=lambda words: torch.tensor([numbers.get(w, 0.0) for w in words]).view(-1, 1, 1),
        predictor=lambda states, process: lambda x, t: predict(x, t, states),
    )


# ---- what knows little ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "prediction"), PROCESSES)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_trivial_losses_are_those_of_the_fitted_predictors(name, prediction, t):
    """Against a constant and a line fitted by least squares to 200,000 draws."""
    process, generator = NoiseProcess(name, prediction), torch.Generator().manual_seed(0)
    mean, std = torch.tensor([1.0, -0.5]), torch.tensor([2.0, 0.5])
    x0, eps = torch.randn(2, 200_000, 2, generator=generator, dtype=torch.float64).unbind()
    x0 = mean + std * x0
    times = torch.full((len(x0),), t, dtype=torch.float64)
    x_t, target = process.corrupt(x0, eps, times), process.target(x0, eps, times)
    centred, moved = x_t - x_t.mean(0), target - target.mean(0)
    slope = (centred * moved).sum(0) / centred.square().sum(0)
    wanted = {
        "zero": target.square().mean(),
        "mean": moved.square().mean(),
        "linear": (moved - slope * centred).square().mean(),
    }
    found = trivial_losses(process, torch.tensor(t), mean, std**2)
    for key, value in wanted.items():
        assert float(found[key]) == pytest.approx(float(value), rel=0.02), key
    assert found["linear"] <= found["mean"] <= found["zero"]


@pytest.mark.parametrize(("name", "prediction"), PROCESSES)
def test_the_exact_network_of_a_gaussian_is_the_linear_one(name, prediction):
    """Its loss is the closed form, the gap to other draws of the same law is nothing, and captions are not used."""
    process = NoiseProcess(name, prediction)
    mean, std = (torch.tensor(v).view(1, 2, 1, 1) for v in ([1.0, -0.5], [2.0, 0.5]))

    def predict(x, timestep, states):
        t = process.schedule.from_timestep(timestep.double())
        alpha, sigma = (expand_to(scale, x.double()) for scale in process.scales(t))
        x_t = x.double() / expand_to(process.schedule.input_scale(t), x.double())
        x0_hat = mean + std**2 * alpha / (alpha**2 * std**2 + sigma**2) * (x_t - alpha * mean)
        return convert(x0_hat, x_t, alpha, sigma, "sample", prediction).float()

    found = measure(pipeline_of(predict), process, Points(3000), Points(3000, 1), Plan(limit=3000, bins=4, batch=1000))
    for row in [*found["bins"], found["all"]]:
        for split in ("train", "validation"):
            assert row[split]["mean"] == pytest.approx(row["linear"], abs=4 * row[split]["standard_error"])
        assert abs(row["gap"]["mean"]) < 4 * row["gap"]["standard_error"]
        assert row["shuffled"]["mean"] == row["empty"]["mean"] == 0
    assert found["items"] == {"train": 3000, "validation": 3000}


def test_a_network_that_answers_zero_costs_what_zero_costs():
    process = NoiseProcess()
    network = pipeline_of(lambda x, timestep, states: torch.zeros_like(x))
    found = measure(network, process, Points(4000), Points(4000), Plan(limit=4000, bins=2, batch=1000))
    assert found["all"]["train"]["mean"] == pytest.approx(
        found["all"]["zero"], abs=4 * found["all"]["train"]["standard_error"]
    )
    assert found["all"]["gap"]["mean"] == 0  # the same items under the same noise


# ---- captions -------------------------------------------------------------------------------------------------------


def test_the_price_of_a_wrong_and_of_no_caption_is_exact():
    """Told -2 or 2, the network knows x0; a wrong word is 4 off, and none 2, which the velocity shows 1 / t times."""
    process, data = NoiseProcess(), Ends(16)

    def predict(x, timestep, states):
        t = expand_to(timestep / 1000, x)
        return (x - 2 * states.view(-1, 1, 1, 1)) / t

    network, plan = pipeline_of(predict, channels=1), Plan(limit=16, bins=3, batch=5)
    losses = denoising_losses(network, process, choose_items(network, data, plan), plan)
    torch.testing.assert_close(losses.errors["own"], torch.zeros(16, 3, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(losses.errors["shuffled"], 16 / losses.times**2, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(losses.errors["empty"], 4 / losses.times**2, rtol=1e-3, atol=1e-6)
    edges = bin_edges(process, 3)
    for k in range(3):
        assert ((losses.times[:, k] >= edges[k]) & (losses.times[:, k] <= edges[k + 1])).all()


def test_the_noise_of_an_item_does_not_depend_on_how_many_there_are():
    """A batch's noise is drawn in full whatever its size, so that splits of unequal size share it."""
    network, plan = pipeline_of(lambda x, timestep, states: x), Plan(limit=8, bins=2, batch=8)
    few, many = (
        denoising_losses(network, NoiseProcess(), choose_items(network, data, plan), plan, ("own",))
        for data in (Points(5), Points(8))
    )
    assert torch.equal(few.times, many.times[:5])
    torch.testing.assert_close(few.errors["own"][0], many.errors["own"][0])  # the first is the same item in both


@pytest.mark.parametrize("captions", [["a", "b"] * 4, ["a", "a", "b", "c"], list("abcdefg"), ["", "x", "y", ""]])
def test_exchanged_captions_are_the_same_ones_and_none_stays(captions):
    found = exchanged_captions(captions)
    assert sorted(found) == sorted(captions)
    assert all(a != b for a, b in zip(found, captions, strict=True))


def test_without_captions_there_is_nothing_to_exchange():
    network = pipeline_of(lambda x, timestep, states: x)
    found = measure(network, NoiseProcess(), Points(8), Points(8), Plan(bins=2), captions=False)
    assert "shuffled" not in found["all"] and exchanged_captions([]) == []


# ---- in training ----------------------------------------------------------------------------------------------------


class Shades:
    """Flat grey pictures; the caption says which."""

    resolution, channels, has_captions = 16, 1, True

    def __init__(self, count, first=0):
        self.ids = [f"{first + i}" for i in range(count)]
        self.fingerprint, self.first = f"shades{count}", first

    def __len__(self):
        return len(self.ids)

    def image(self, i):
        return np.full((16, 16, 1), 20 * ((self.first + i) % 12), np.uint8)

    def caption(self, i, rng):
        return f"shade {(self.first + i) % 12} {rng.integers(3)}"


def task_of(run, splits, **train):
    options = {"num_steps": 3, "batch_size": 4, "report_to": [], "mixed_precision": "no", "sample_every": 0} | train
    settings = LdmSettings(
        output_dir=run,
        data={"resolution": 16},
        train=options,
        vae="identity",
        text={"source": "new", "width": 16},
        model={
            "block_out_channels": [8, 16],
            "norm_num_groups": 4,
            "attention_levels": [1],
            "heads": 2,
            "dropout": 0.2,
        },
        sampling={"num_inference_steps": 2, "per_prompt": 1},
    )
    run.mkdir(parents=True, exist_ok=True)
    return denoising_task(settings, splits, run, torch.device("cpu")), settings


def test_the_gap_is_logged_by_quarters_and_is_nothing_between_equal_splits(tmp_path):
    task, _ = task_of(tmp_path / "run", Splits(Shades(64), Shades(64)))
    found = task.report(tmp_path, "x")
    quarters = {name for name in found if name.startswith("gap/")}
    assert quarters == {"gap/0.00-0.25", "gap/0.25-0.50", "gap/0.50-0.75", "gap/0.75-1.00"}
    assert found["loss"] == found["train_loss"] and all(found[name] == 0 for name in {"gap", *quarters})
    other, _ = task_of(tmp_path / "other", Splits(Shades(64), Shades(40, first=5)))
    found = other.report(tmp_path, "y")
    assert found["gap"] == pytest.approx(found["loss"] - found["train_loss"]) and math.isfinite(found["gap"])
    assert other.validate() == {"loss": found["loss"]}
    other.copy_rate = lambda pipeline: 0.5 if pipeline.unet is other.module.unet else 0.0
    assert other.validate() == {"loss": found["loss"], "copies": 0.5}


def test_measuring_the_gap_does_not_disturb_training(tmp_path):
    weights = []
    for name, every in (("never", 0), ("always", 1)):
        task, settings = task_of(tmp_path / name, Splits(Shades(24), Shades(8)), sample_every=every)
        Trainer(task, settings, tmp_path / name).fit()
        AcceleratorState._reset_state(reset_partial_state=True)
        weights.append(dict(task.module.named_parameters()))
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
