"""The three trainers on twenty pictures, so small that a step takes milliseconds; dropout and a discriminator on."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from packed import write_shards
from PIL import Image
from tiny_model import tiny_folder

from ldm.config.settings import (
    ClipSettings,
    DataOptions,
    LdmSettings,
    OptimOptions,
    RunSettings,
    TrainOptions,
    VaeSettings,
)
from ldm.data import build
from ldm.training import watchdog
from ldm.training.distributed import start_world
from ldm.training.run_directory import open_run
from ldm.training.tasks.clip import ClipTask
from ldm.training.tasks.denoising import denoising_task
from ldm.training.tasks.vae import VaeTask
from ldm.training.trainer import Trainer
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils import sharded_files

PICTURES, SIDE, CPU = 20, 16, torch.device("cpu")
PATIENCE = 500.0  # seconds: below the limits of tests/forked.py, so that a line says why
PARTS = ("clip", "vae", "ldm")
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
# Sharded trainings on CPUs talk by gloo, whose threads now and then crash (docs/log.md, 2026-12-01): then once more.
GLOO = pytest.mark.flaky(reruns=2, only_rerun=["Fatal Python error", "(reset|closed) by peer"])
# name -> processes, what their launcher adds to the environment, options of `settings_of`
WAYS: dict[str, tuple[int, dict[str, str], dict]] = {
    "plain": (1, {}, {}),
    "asynchronous": (1, {}, {"async_checkpoints": True}),
    "streamed": (1, {}, {"streamed": True}),
    "sharded": (2, FSDP, {}),  # denoisers alone
    "sharded, asynchronous": (2, FSDP, {"async_checkpoints": True}),
}


def write_project(folder: Path) -> Path:
    """Captioned pictures and a model of random weights, from which an LDM takes its VAE and its text encoder."""
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    for i in range(PICTURES):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), np.uint8)).save(folder / "pictures" / f"{i:02}.png")
        (folder / "pictures" / f"{i:02}.txt").write_text(f"picture {i} of {i % 3}")
    write_shards(folder / "shards")
    tiny_folder(folder / "model")
    for part in PARTS:  # caches are made once
        task_of(part, settings_of(part, folder, folder / "first" / part), folder / "first" / part)
    return folder


def settings_of(part: str, project: Path, run: Path, streamed: bool = False, **train) -> RunSettings:
    """Settings of one part; `train` changes its `TrainOptions`. `streamed`: images of shards, encoded in each step."""
    options = {"num_steps": 8, "batch_size": 4, "log_every": 1, "sample_every": 0, "save_every": 3}
    options |= {"mixed_precision": "no", "report_to": ["none"], "ema_decay": 0.9, "keep_checkpoints": 3} | train
    data = {"source": str(project / "pictures"), "resolution": SIDE, "channels": 1, "cache_dir": project / "cache"}
    if streamed:
        data |= {"source": str(project / "shards" / "part-*.tar"), "shards": {"lanes": 3, "window": 10}}
    common = {
        "output_dir": run,
        "data": DataOptions(**data, files={"validation_fraction": 0.2}),
        "train": TrainOptions(**options),
        "optim": OptimOptions(lr=1e-3, warmup_steps=2),
    }
    small = {"block_out_channels": [8, 16], "norm_num_groups": 4}
    if part == "clip":
        towers = {"width": 16, "layers": 1, "heads": 2, "vision_width": 16, "vision_layers": 1, "vision_heads": 2}
        return ClipSettings(**common, model={**towers, "embed_dim": 8, "patch_size": 8, "vocab_size": 600})
    if part == "vae":
        loss = {"perceptual": 0.1, "adversarial": 0.1, "adversarial_start": 0.3}
        return VaeSettings(**common, model={**small, "latent_channels": 2}, loss=loss)
    return LdmSettings(
        **common,
        model={**small, "attention_levels": [1], "heads": 2, "dropout": 0.1},
        vae=str(project / "model"),
        cache_latents=not streamed,
        text={"source": str(project / "model")},
        sampling={"num_inference_steps": 2, "per_prompt": 1, "prompts": ["picture 1"]},
    )


def task_of(part: str, settings: RunSettings, run: Path, device: torch.device | None = None):
    """The task, built by the main process first: it makes the caches and the tokenizer for the others."""
    run.mkdir(parents=True, exist_ok=True)
    with start_world().main_process_first():
        data = build(settings.data)
        if part == "clip":
            return ClipTask(settings, data, run)
        return VaeTask(settings, data) if part == "vae" else denoising_task(settings, data, run, device or CPU)


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """The watchdog ends nobody who is slow meanwhile: what is tested is progress, on a busy machine too.

    Whom it ends, and when, is what tests/faults/test_worlds.py is about.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRACE", "FIRST_GRACE", "GONE", "GONE_ALONE"):
            patch.setattr(watchdog, name, PATIENCE)
        yield


@patience()
def train(part: str, project: Path, run: Path, resume: str = "auto", **options) -> Trainer:
    """As train_<part>.py does it."""
    torch.set_num_threads(1)
    settings = settings_of(part, project, run, **options)
    open_run(settings, part)
    task = task_of(part, settings, run)
    trainer = Trainer(task, settings, run)
    trainer.fit(resume)
    return trainer


def marks(way: str):
    """What pytest should know of a training of WAYS."""
    return GLOO if "sharded" in way else ()


# ---- what a run left ------------------------------------------------------------------------------------------------


def losses(run: Path) -> dict[int, float]:
    """Step -> training loss, from the log; a line that a kill cut off is left out."""
    found = {}
    for line in (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").exists() else []:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if "loss" in entry:
                found[entry["step"]] = entry["loss"]
    return found


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest and, of a state, what names the run's own folder.

    Of shards the tensors: safetensors writes their metadata in any order.
    """
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files.pop(checkpoint.MANIFEST)
    if sharded_files.is_sharded(folder):
        files = {name: data for name, data in files.items() if not name.startswith(sharded_files.SHARDS)}
        groups = sharded_files.read_whole(folder).items()
        files |= {f"{group}/{name}": value.numpy().tobytes() for group, own in groups for name, value in own.items()}
    if "state.json" in files:
        state = json.loads(files["state.json"])
        state.pop("settings")
        files["state.json"] = json.dumps(state, sort_keys=True).encode()
    return files


def assert_same_run(one: Path, other: Path) -> None:
    """The newest checkpoints (weights, moments, averages), final models and losses are equal to the last bit."""
    newest = [checkpoint.newest(run / "checkpoints") for run in (one, other)]
    assert newest[0] is not None and newest[1] is not None and newest[0].name == newest[1].name
    assert content(newest[0]) == content(newest[1])
    assert content(one / "final") == content(other / "final")
    assert losses(one) == losses(other)
