"""Students: what they are told is where their teacher arrives, in cases with known answers; and a tiny run."""

import json
import math

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_model import tiny_folder, tiny_pipeline
from torch import nn

from ldm.config.settings import DistillOptions, LdmSettings
from ldm.data import Splits
from ldm.diffusion.guidance import guide
from ldm.diffusion.process import NoiseProcess
from ldm.models.text_encoder import null_text_encoder
from ldm.pipelines.loading import load_pipeline
from ldm.training.run_directory import record
from ldm.training.tasks.denoising import LdmTask
from ldm.training.tasks.distillation import DistillObjective, distillation_task
from ldm.training.trainer import Trainer
from ldm.utils.errors import UserError
from tests.training.tasks.test_denoising import Shades

PROCESSES = [
    {},
    {"process": "cosine", "prediction_type": "v_prediction"},
    {"process": "karras", "prediction_type": "v_prediction"},
]
C = 0.4  # standard deviation of Gaussian data


@pytest.fixture(autouse=True)
def a_life_of_its_own():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Exact(nn.Module):
    """The best prediction for data N(0, C^2): with x0_hat = alpha C^2 / (alpha^2 C^2 + sigma^2) x."""

    def __init__(self, process):
        super().__init__()
        self.process = process

    def forward(self, x, timestep, encoder_hidden_states, return_dict=True):
        t = self.process.schedule.from_timestep(torch.as_tensor(timestep).double()).expand(len(x)).float()
        seen = self.process.schedule.input_scale(t)
        alpha, sigma = self.process.scales(t)
        shape = (-1, 1, 1, 1)
        x_t = x / seen.reshape(shape)
        x0 = (alpha * C**2 / (alpha**2 * C**2 + sigma**2)).reshape(shape) * x_t
        eps = (x_t - alpha.reshape(shape) * x0) / sigma.reshape(shape)
        found = self.process.target(x0, eps, t)
        return type("Output", (), {"sample": found}) if return_dict else (found,)


def objective(teacher, process, **options):
    text, tokenizer = null_text_encoder()
    ids = torch.full((1, 8), tokenizer.eos_token_id)
    return DistillObjective(teacher, text, process, teacher, ids, DistillOptions(**options))


@pytest.mark.parametrize("options", PROCESSES)
@pytest.mark.parametrize("steps", [1, 4])
def test_one_step_with_the_target_ends_where_the_exact_path_does(options, steps):
    """For Gaussian data the path is known: x_s / x_t is the ratio of the standard deviations there."""
    process = NoiseProcess(**options)
    told = objective(Exact(process), process, steps=steps, substeps=200, guidance_scale=1.0, sampler="dpmpp_2m")
    generator = torch.Generator().manual_seed(0)
    x_t, states = torch.randn(6, 1, 4, 4, generator=generator), torch.zeros(6, 8, 4)
    times = torch.tensor([1, 2, 3, 4, 4, 1]) / 4 if steps == 4 else torch.ones(6)
    target = told.step_target(x_t, times, states, states)
    for row, t in enumerate(times.tolist()):
        start, end = (process.scales(torch.tensor([at])) for at in (t, max(t - 1 / steps, 0.0)))
        deviations = [math.hypot(alpha.item() * C, sigma.item()) for alpha, sigma in (start, end)]
        wanted = x_t[row] * (C if t - 1 / steps <= 0 else deviations[1]) / deviations[0]
        x0 = process.predict_x0(x_t[row : row + 1], target[row : row + 1], torch.tensor([t]))[0]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = start, end if t > 1 / steps else (torch.ones(1), torch.zeros(1))
        keep = sigma_s / sigma_t
        torch.testing.assert_close(keep * x_t[row] + (alpha_s - keep * alpha_t) * x0, wanted, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("options", PROCESSES)
@pytest.mark.parametrize("steps", [0, 3])
def test_with_one_substep_the_target_is_the_guided_prediction(options, steps):
    pipeline, process = tiny_pipeline(), NoiseProcess(**options)
    told = objective(pipeline.unet, process, steps=steps, substeps=1, guidance_scale=2.5, sampler="ddim")
    generator = torch.Generator().manual_seed(0)
    x_t, states = torch.randn(5, 4, 8, 8, generator=generator), torch.randn(5, 16, 16, generator=generator)
    null, times = torch.zeros(5, 16, 16), torch.tensor([1, 2, 3, 1, 2]) / 3

    def network(x, t, condition):
        return pipeline.unet(process.network_input(x, t), process.timestep(t), condition).sample

    with torch.no_grad():
        wanted = guide(network, states, null, 2.5)(x_t, times)
        found = told.step_target(x_t, times, states, null) if steps else told.guided(x_t, times, states, null)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def test_times_move_up_to_the_start_of_their_step():
    seen = []

    class Remembers(Exact):
        def forward(self, x, timestep, encoder_hidden_states, return_dict=True):
            seen.append(torch.as_tensor(timestep))
            return super().forward(x, timestep, encoder_hidden_states, return_dict)

    process = NoiseProcess()
    told = objective(Remembers(process), process, steps=4, substeps=1, guidance_scale=1.0)
    x, times = torch.randn(6, 1, 4, 4), torch.tensor([1e-5, 0.25, 0.2501, 0.6, 0.76, 1.0])
    told.losses(x, torch.randn_like(x), times, torch.zeros(1, 8, dtype=torch.long))
    torch.testing.assert_close(seen[-1], 1000 * torch.tensor([0.25, 0.25, 0.5, 0.75, 1.0, 1.0]))


def test_a_student_that_is_its_unguided_teacher_has_nothing_to_learn():
    process = NoiseProcess()
    told = objective(Exact(process), process, steps=0, guidance_scale=1.0)
    x = torch.randn(4, 1, 4, 4)
    losses, _ = told.losses(x, torch.randn_like(x), torch.rand(4), torch.zeros(1, 8, dtype=torch.long))
    assert losses.max() < 1e-10


# ---- a run ----------------------------------------------------------------------------------------------------------


def settings(teacher, run, **changes) -> LdmSettings:
    values = {
        "output_dir": run,
        "data": {"resolution": 16, "cache_dir": run.parent / "cache"},
        "train": {"num_steps": 60, "batch_size": 16, "log_every": 20, "sample_every": 0, "save_every": 60}
        | {"mixed_precision": "no", "report_to": ["none"], "ema_decay": 0.5},
        "optim": {"lr": 4e-4, "warmup_steps": 5},
        "distill": {"teacher": teacher, "steps": 2, "substeps": 2, "guidance_scale": 3.0},
        "noise": {"timesteps": "uniform"},
        "sampling": {"num_inference_steps": 2, "guidance_scale": 1.0, "sampler": "euler", "prompts": ["dark"]},
    }
    return LdmSettings(**{**values, **changes})


def task(options: LdmSettings) -> LdmTask:
    options.output_dir.mkdir(parents=True, exist_ok=True)
    return distillation_task(options, Splits(Shades(32), Shades(8), Shades(8)), options.output_dir, torch.device("cpu"))


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teacher_and_leaves_it_alone(tmp_path):
    teacher = tiny_folder(tmp_path / "teacher")
    options = settings(teacher, tmp_path / "student")
    made = task(options)
    record(options.output_dir, options)
    before = {name: value.clone() for name, value in made.module.teacher.state_dict().items()}
    Trainer(made, options, options.output_dir).fit()
    assert all(torch.equal(value, before[name]) for name, value in made.module.teacher.state_dict().items())
    log = [json.loads(line) for line in (options.output_dir / "log.jsonl").read_text().splitlines()]
    first, last = (entry["raw/loss"] for entry in log if "raw/loss" in entry)
    assert last < 0.9 * first
    student, one = load_pipeline(options.output_dir), load_pipeline(teacher)
    assert student.defaults["guidance_scale"] == 1.0 and student.defaults["num_inference_steps"] == 2
    for name in ("vae", "text_encoder"):  # the teacher's
        pairs = zip(getattr(student, name).parameters(), getattr(one, name).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert np.isfinite(student("dark", seed=0, output_type="np").images).all()


@pytest.mark.parametrize(
    ("noise", "told"),
    [
        ({"shift": 2.0}, "another noise process"),
        ({"process": "cosine", "prediction_type": "v_prediction"}, "another noise process"),
        ({"process": "linear", "prediction_type": "epsilon", "learned_variance": True}, "learned_variance"),
    ],
)
def test_a_teacher_of_another_process_is_refused(tmp_path, noise, told):
    teacher = tiny_folder(tmp_path / "teacher")
    with pytest.raises(UserError, match=told):
        task(settings(teacher, tmp_path / "student", noise=noise))


def test_a_missing_teacher_is_told(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        task(settings(tmp_path / "nobody", tmp_path / "student"))
