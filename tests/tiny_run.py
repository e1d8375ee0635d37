"""A tiny run that really learned: bars of four colours, captions that name them, a VAE, a text tower and a U-Net."""

from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from ldm.config.settings import DataOptions, LdmSettings, OptimOptions, TrainOptions, VaeLoss, VaeModel, VaeSettings
from ldm.data import Splits, build
from ldm.training.run_directory import record
from ldm.training.tasks.denoising import denoising_task
from ldm.training.tasks.vae import VaeTask
from ldm.training.trainer import Trainer

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 230), "white": (250, 250, 250)}
SIDE, ITEMS = 16, 240


def write_pictures(folder: Path, shuffled: bool = False) -> None:
    """A bar of one colour on black at a random even height, and its caption beside it; or the caption of another."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    names = [list(COLOURS)[i % len(COLOURS)] for i in range(ITEMS)]
    told = list(rng.permutation(names)) if shuffled else names
    for i, name in enumerate(names):
        picture = np.zeros((SIDE, SIDE, 3)) + rng.uniform(0, 20)
        top, tall = 2 * rng.integers(0, 5), 2 * rng.integers(2, 4)
        picture[top : top + tall, 2:14] = COLOURS[name]
        picture += rng.normal(0, 4, picture.shape)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"a {told[i]} bar")


def train_options(steps: int, batch: int) -> TrainOptions:
    return TrainOptions(
        num_steps=steps,
        batch_size=batch,
        sample_every=0,
        save_every=steps,
        log_every=50,
        mixed_precision="no",
        report_to=["none"],
        ema_decay=0.98,
    )


def data_options(project: Path) -> DataOptions:
    files = {"validation_fraction": 0.2}
    return DataOptions(
        source=str(project / "pictures"), resolution=SIDE, channels=3, cache_dir=project / "cache", files=files
    )


def train_vae(project: Path, splits: Splits, steps: int = 240) -> None:
    settings = VaeSettings(
        output_dir=project / "vae",
        data=data_options(project),
        model=VaeModel(block_out_channels=[16, 16], norm_num_groups=2, latent_channels=4),
        loss=VaeLoss(perceptual=0, kl=1e-4),
        train=train_options(steps, 16),
        optim=OptimOptions(lr=5e-3, warmup_steps=20),
    )
    Trainer(VaeTask(settings, splits), settings, project / "vae").fit()
    AcceleratorState._reset_state(reset_partial_state=True)


def ldm_settings(project: Path, steps: int = 300, **changes) -> LdmSettings:
    values = {
        "output_dir": project / "ldm",
        "data": data_options(project),
        "train": train_options(steps, 32),
        "optim": OptimOptions(lr=3e-3, warmup_steps=20),
        "text": {"source": "new", "width": 16},
        "model": {
            "conditioning": "modulation",
            "block_out_channels": [16, 32],
            "norm_num_groups": 4,
            "attention_levels": [1],
            "heads": 2,
        },
        "sampling": {"num_inference_steps": 20, "guidance_scale": 2.0, "per_prompt": 1, "prompts": ["a red bar"]},
    }
    return LdmSettings(**{**values, **changes})


def train_ldm(settings: LdmSettings, splits: Splits) -> Path:
    torch.manual_seed(0)
    run = settings.output_dir
    run.mkdir(parents=True, exist_ok=True)
    task = denoising_task(settings, splits, run, torch.device("cpu"))
    record(run, settings)
    Trainer(task, settings, run).fit()
    AcceleratorState._reset_state(reset_partial_state=True)
    return run


def healthy_run(project: Path) -> Path:
    write_pictures(project / "pictures")
    splits = build(data_options(project))
    train_vae(project, splits)
    return train_ldm(ldm_settings(project), splits)
