"""Every path to a GPU, on the pretend device: nothing mixes devices, and a step waits for the device at most once."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pretend_cuda
import pytest
import torch
import tiny_trainings
from accelerate.state import AcceleratorState
from forked import Child
from tiny_model import COSINE, tiny_folder, tiny_lora
from tiny_trainings import losses, settings_of

from ldm.cli.train import quiet_libraries, task_of
from ldm.data import build
from ldm.diffusion.samplers import SAMPLERS
from ldm.training.trainer import Trainer

STEPS = 5
COSINE_NOISE = {"process": "cosine", "prediction_type": "v_prediction"}
# name -> part, settings that differ from tiny_trainings', options of the training
TRAININGS = {
    "clip, bf16": ("clip", {}, {"mixed_precision": "bf16"}),
    "clip, fp16": ("clip", {}, {"mixed_precision": "fp16"}),
    "clip, hard negatives": ("clip", {"loss": {"hard_negatives": 1}}, {}),
    "clip, muon": ("clip", {"optim": {"name": "muon"}}, {}),
    "vae, with a discriminator": ("vae", {}, {"mixed_precision": "bf16"}),
    "vae, linear": ("vae", {"model": {"kind": "linear", "latent_channels": 4}}, {}),
    "vae, tiny": ("vae", {"model": {"kind": "tiny"}}, {}),
    "vae, vq": ("vae", {"model": {"kind": "vq", "codebook_size": 16}}, {}),
    "ldm, flow": ("ldm", {}, {"mixed_precision": "bf16", "gradient_checkpointing": True}),
    "ldm, fp16": ("ldm", {}, {"mixed_precision": "fp16"}),
    "ldm, accumulated": ("ldm", {}, {"gradient_accumulation_steps": 2}),
    "ldm, tabled noise": ("ldm", {"noise": COSINE_NOISE | {"weight": "min_snr"}}, {}),
    "ldm, learned variance": ("ldm", {"noise": COSINE_NOISE | {"learned_variance": True}}, {}),
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
    options = {"num_steps": steps, "save_every": 3, "log_every": 100, "sample_every": 0, "keep_best": True} | options
    settings = settings_of(part, project, run, **options)
    names = {"MODEL": str(project / "model"), "CLIP": str(project / "clip")}
    settings = type(settings)(**merged(settings.model_dump(), changes, names))
    task = task_of(part, settings, build(settings.data), run, torch.device("cuda", 0))
    trainer = Trainer(task, settings, run)
    counts, step = [], trainer._step

    def counted(*args):
        before = dict(pretend_cuda.syncs)
        step(*args)
        counts.append({line: n - before.get(line, 0) for line, n in pretend_cuda.syncs.items()})
        counts[-1] = {line: n for line, n in counts[-1].items() if n}

    trainer._step = counted
    trainer.fit()
    assert {p.device.type for p in task.module.parameters()} == {"cuda"}
    scaler = trainer.accelerator.scaler
    return {"counts": counts, "scale": scaler.get_scale() if scaler else 0, "skipped": trainer.state.skipped}


@pytest.mark.parametrize("case", TRAININGS)
def test_a_training_step_waits_for_the_device_once(case, project, tmp_path):
    found = on_device(partial(trained, case, project, tmp_path / "run"), tmp_path / "out")
    assert len(found["counts"]) == STEPS
    for step in found["counts"]:
        assert sum(step.values()) <= 1, step
    if "fp16" not in case:
        assert all(np.isfinite(loss) for loss in losses(tmp_path / "run").values())


@pytest.mark.parametrize("case", ["clip, muon", "ldm, flow"])
def test_a_resumed_training_waits_no_more(case, project, tmp_path):
    work = partial(trained, case, project, tmp_path / "run")
    on_device(work, tmp_path / "first")
    found = on_device(partial(work, steps=STEPS + 3), tmp_path / "second")
    assert len(found["counts"]) == 3
    assert all(sum(step.values()) <= 1 for step in found["counts"]), found["counts"]
