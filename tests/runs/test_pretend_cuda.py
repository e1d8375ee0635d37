"""Every path to a GPU, on the pretend device: nothing mixes devices, and a step waits for the device at most once."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pretend_cuda
import pytest
import tiny_trainings
import torch
from accelerate.state import AcceleratorState
from forked import Child
from tiny_model import COSINE, FLOW, tiny_folder, tiny_lora
from tiny_trainings import assert_same_run, losses, settings_of

from ldm.cli.train_project import command
from ldm.cli.train_stage import quiet_libraries, task_of
from ldm.config.settings import NoiseOptions
from ldm.data import build
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.samplers import SAMPLERS
from ldm.diffusion.sampling import prior, sample
from ldm.evaluation import loss_by_time
from ldm.pipelines import editing
from ldm.pipelines.diffusers_schedulers import process_of, samplers_for
from ldm.pipelines.loading import load_pipeline
from ldm.training.trainer import Trainer

STEPS = 3
COSINE_NOISE = {"process": "cosine", "prediction_type": "v_prediction"}
# name -> part, settings that differ from tiny_trainings', options of the training
TRAININGS = {
    "clip, bf16": ("clip", {}, {"mixed_precision": "bf16"}),
    "clip, fp16": ("clip", {}, {"mixed_precision": "fp16"}),
    "clip, hard negatives": ("clip", {"loss": {"hard_negatives": 1}}, {}),
    "clip, muon": ("clip", {"optim": {"name": "muon"}}, {}),
    "vae, with a discriminator": ("vae", {}, {"mixed_precision": "bf16"}),
    "vae, linear": ("vae", {"model": {"kind": "linear", "latent_channels": 4, "block_out_channels": [8, 8]}}, {}),
    "vae, vq": ("vae", {"model": {"kind": "vq", "codebook_size": 16}}, {}),
    "ldm, flow": ("ldm", {}, {"mixed_precision": "bf16", "gradient_checkpointing": True}),
    "ldm, fp16": ("ldm", {}, {"mixed_precision": "fp16"}),
    "ldm, average on the CPU": ("ldm", {}, {"mixed_precision": "bf16", "ema_offload": True}),
    "ldm, accumulated": ("ldm", {}, {"gradient_accumulation_steps": 2}),
    "ldm, tabled noise": ("ldm", {"noise": COSINE_NOISE | {"weight": "min_snr"}}, {}),
    "ldm, learned variance": (
        "ldm",
        {"noise": COSINE_NOISE | {"learned_variance": True}, "sampling": {"sampler": "ddpm", "time_grid": "linspace"}},
        {},
    ),
    "ldm, learned weight": ("ldm", {"noise": {"weight": "learned"}}, {}),
    "ldm, karras": ("ldm", {"noise": {"process": "karras", "prediction_type": "v_prediction"}}, {}),
    "ldm, new text encoder": ("ldm", {"text": {"source": "new", "width": 16}}, {}),
    "ldm, in pixels": ("ldm", {"vae": "identity"}, {}),
    "ldm, aligned": ("ldm", {"alignment": {"weight": 0.5, "source": "CLIP"}}, {}),
    "distillation": ("ldm", {"distill": {"teacher": "MODEL"}}, {}),
    "distillation of guidance": ("ldm", {"distill": {"teacher": "MODEL", "steps": 0}}, {}),
    "fine-tuning": ("ldm", {"start": {"model": "MODEL"}}, {}),
    "lora": ("ldm", {"start": {"model": "MODEL", "lora_rank": 2, "lora_text": True}}, {}),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretend")
    child = Child(lambda: _make(folder / "made"), folder / "output")
    assert child.wait() == 0, child.said()
    return folder / "made"


def _make(folder: Path) -> None:
    tiny_trainings.write_project(folder)
    tiny_trainings.train("clip", folder, folder / "clip", num_steps=2)


def on_device(work, folder: Path) -> dict:
    """What `work` returns, done on the pretend device in a process of its own."""
    folder.mkdir(exist_ok=True)

    def run() -> None:
        torch.set_num_threads(1)
        quiet_libraries()
        AcceleratorState._reset_state(reset_partial_state=True)
        pretend_cuda.install()
        with pretend_cuda.running():
            found = work()
        (folder / "found.json").write_text(json.dumps(found | {"syncs": pretend_cuda.syncs}))

    child = Child(run, folder / "said")
    assert child.wait() == 0, child.said()[-6000:]
    return json.loads((folder / "found.json").read_text())


def merged(values: dict, changes: dict, names: dict[str, str]) -> dict:
    out = dict(values)
    for key, value in changes.items():
        old = values.get(key)
        out[key] = merged(old, value, names) if isinstance(value, dict) and isinstance(old, dict) else value
        if isinstance(value, str):
            out[key] = names.get(value, value)
    return out


def trained(case: str, project: Path, run: Path, steps: int = STEPS) -> dict:
    """Host syncs in each step of a training, counted within `Trainer._step`."""
    part, changes, options = TRAININGS[case]
    options = {
        "num_steps": steps,
        "save_every": 3,
        "log_every": 100,
        "sample_every": 0,
        "keep_best": True,
        "num_workers": 0,
    } | options
    settings = settings_of(part, project, run, **options)
    names = {"MODEL": str(project / "model"), "CLIP": str(project / "clip")}
    settings = type(settings)(**merged(settings.model_dump(), changes, names))
    task = task_of(part, settings, build(settings.data), run, torch.device("cuda", 0))
    trainer = Trainer(task, settings, run)
    counts, moved, step, weight = [], [], trainer._step, next(p for p in task.module.parameters() if p.requires_grad)

    def counted(*args):
        before, old = dict(pretend_cuda.syncs), weight.detach().clone()
        step(*args)
        counts.append({line: n - before.get(line, 0) for line, n in pretend_cuda.syncs.items()})
        counts[-1] = {line: n for line, n in counts[-1].items() if n}
        moved.append(not torch.equal(old, weight))
        assert moved[-1] == (trainer.state.skipped == 0)

    trainer._step = counted
    trainer.fit()
    assert {p.device.type for p in task.module.parameters()} == {"cuda"}
    scaler = trainer.accelerator.scaler
    return {"counts": counts, "moved": moved, "scale": scaler.get_scale() if scaler else 0}


@pytest.mark.parametrize("case", TRAININGS)
def test_a_training_step_waits_for_the_device_once(case, project, tmp_path):
    found = on_device(partial(trained, case, project, tmp_path / "run"), tmp_path / "out")
    assert len(found["counts"]) == STEPS
    for step in found["counts"]:
        assert sum(step.values()) <= (2 if case == "distillation" else 1), step  # which reads its times
    if "fp16" in case:  # the scale begins too high on purpose: steps are skipped, and it is halved
        assert found["scale"] == 2.0 ** (16 - found["moved"].count(False)) and any(found["moved"])
    else:
        assert all(found["moved"]) and all(np.isfinite(loss) for loss in losses(tmp_path / "run").values())


@pytest.mark.parametrize("case", ["clip, muon", "ldm, flow"])
def test_a_resumed_training_waits_no_more(case, project, tmp_path):
    work = partial(trained, case, project, tmp_path / "run")
    on_device(work, tmp_path / "first")
    found = on_device(partial(work, steps=STEPS + 3), tmp_path / "second")
    assert len(found["counts"]) == 3
    assert all(sum(step.values()) <= 1 for step in found["counts"]), found["counts"]


def test_an_average_on_the_cpu_is_the_same(project, tmp_path):
    """In checkpoints, in the finished model, after going on from a checkpoint; and it lies there."""

    def work(run, offload, steps):
        options = {"num_steps": steps, "ema_offload": offload, "keep_best": False, "num_workers": 0}
        settings = settings_of("ldm", project, run, **options)
        trainer = Trainer(task_of("ldm", settings, build(settings.data), run, torch.device("cuda", 0)), settings, run)
        trainer.fit()
        return {"devices": sorted({one.device.type for one in trainer.ema.shadow_params})}

    for name, offload, steps in (("plain", False, 7), ("moved", True, 4), ("moved", True, 7)):
        found = on_device(partial(work, tmp_path / name, offload, steps), tmp_path / f"{name}-{steps}")
        assert found["devices"] == ["cpu" if offload else "cuda"]
    assert_same_run(tmp_path / "plain", tmp_path / "moved")


# ---- sampling, editing, evaluation ----------------------------------------------------------------------------------


def waits_per_step(sample) -> dict[str, int]:
    """Host syncs that two more steps of a sampling cost: `sample(num_inference_steps)`. What diffusers waits for
    by itself does not count.
    """
    counts = []
    for steps in (2, 4):
        before = dict(pretend_cuda.syncs)
        sample(steps)
        counts.append({line: n - before.get(line, 0) for line, n in pretend_cuda.syncs.items()})
    more = {line: n - counts[0].get(line, 0) for line, n in counts[1].items()}
    return {line: n for line, n in more.items() if n > 0 and "diffusers" not in line}


def by_schedulers(folder: Path, noise: NoiseOptions) -> dict:
    pipeline = load_pipeline(tiny_folder(folder / "model", noise), device="cuda", engine="torch")
    draw = partial(pipeline, "water", guidance_scale=2.0, output_type="latent", seed=0)
    chosen = samplers_for(pipeline.scheduler)
    return {
        "found": {
            sampler: waits_per_step(lambda steps, one=sampler: draw(num_inference_steps=steps, sampler=one))
            for sampler in chosen
        }
    }


def by_our_samplers(folder: Path, noise: NoiseOptions) -> dict:
    pipeline = load_pipeline(tiny_folder(folder / "model", noise), device="cuda", engine="torch")
    schedule = process_of(pipeline.scheduler).schedule
    denoise = torch.no_grad()(pipeline.denoiser("water", 2.0))
    x_t = prior(schedule, (1, *pipeline.latent_shape)).to("cuda")

    def run(sampler: str, steps: int) -> None:
        sample(denoise, x_t, schedule, torch.linspace(1, 0.1, steps + 1, dtype=torch.float64), sampler)

    return {"found": {sampler: waits_per_step(partial(run, sampler)) for sampler in SAMPLERS}}


@pytest.mark.parametrize("noise", [FLOW, COSINE], ids=lambda noise: noise.process)
@pytest.mark.parametrize("work", [by_schedulers, by_our_samplers])
def test_no_sampling_step_waits_for_the_device(work, noise, tmp_path):
    found = on_device(partial(work, tmp_path, noise), tmp_path / "out")["found"]
    assert found and {name: lines for name, lines in found.items() if lines} == {}


def edited(folder: Path, dtype: str) -> dict:
    model = tiny_folder(folder / "model", COSINE)
    pipeline = load_pipeline(model, device="cuda", dtype=dtype, engine="torch", lora=tiny_lora(folder))
    picture = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    steps = {"num_inference_steps": 3, "output_type": "pt"}
    some = Guidance(2.0, (0.1, 0.9), 0.5, True, 0.1)
    images = {
        "generate": pipeline(["water", "fire"], "stone", seed=1, weak=model, **steps),
        "guided": pipeline("water", guidance_scale=some, seed=1, **steps),
        "image": editing.image_to_image(pipeline, picture, "water", 0.7, seed=1, **steps),
        "inpaint": editing.inpaint(pipeline, picture, mask, "water", resample=2, seed=1, sampler="ddim", **steps),
        "edit": editing.edit(pipeline, picture, "water", "fire", **steps),
        "interpolate": editing.interpolate(pipeline, "water", "fire", frames=3, **steps),
        "variations": editing.variations(pipeline, "water", number=2, **steps),
        "compose": editing.compose_prompts(pipeline, [("water", 1.0), ("fire", -0.5)], seed=1, **steps),
        "weighted": editing.prompt_weighting(pipeline, "(water:1.5) fire", seed=1, **steps),
    }
    noise = editing.invert(pipeline, picture, "water", rounds=2, num_inference_steps=3)
    pil = pipeline("water", num_inference_steps=2).images[0]
    finite = {name: bool(one.images.float().cpu().isfinite().all()) for name, one in images.items()}
    return {"finite": finite | {"invert": bool(noise.float().cpu().isfinite().all())}, "size": pil.size}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_way_to_generate_and_edit(dtype, tmp_path):
    found = on_device(partial(edited, tmp_path, dtype), tmp_path / "out")
    assert all(found["finite"].values()) and found["size"] == [16, 16]


def evaluated(project: Path, run: Path) -> dict:
    trained("ldm, flow", project, run)
    loss = loss_by_time.measure_run(run, loss_by_time.Plan(limit=4, batch=4, bins=2), "cuda")
    command("evaluate", str(run), "--samples", "4", "--steps", "2", "--device", "cuda", "-o", str(run / "report"))
    return {"loss": loss, "metrics": json.loads((run / "report" / "metrics.json").read_text())}


def test_a_run_is_evaluated(project, tmp_path):
    found = on_device(partial(evaluated, project, tmp_path / "run"), tmp_path / "out")
    assert found["loss"] and found["metrics"]["format"] == 1
