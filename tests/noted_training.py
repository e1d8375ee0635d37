"""Trains all stages in as many processes as a launcher started, and writes down what each process was given.

    accelerate launch tests/noted_training.py PROJECT FOLDER

For each stage FOLDER gets the run and, of each process, `STAGE-RANK.npz`: by "step/name" every tensor of its batches
and the (index, epoch) of their samples, and by "gradient/name" the gradients of the first step.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from tiny_trainings import PARTS, settings_of, task_of

from ldm.config.settings import RunSettings
from ldm.training.distributed import end_world, start_world
from ldm.training.run_directory import open_run
from ldm.training.trainer import Trainer

STEPS, BATCH, RATE = 50, 8, 1e-4


def exact(part: str, settings: RunSettings) -> RunSettings:
    """Without what makes losses depend on the number of processes: dropout, and what lets roundings grow, which is a
    discriminator, and Adam at a high rate (at 1e-3 losses differ by up to 6e-5 after 50 steps).
    """
    settings = settings.model_copy(update={"optim": settings.optim.model_copy(update={"lr": RATE})})
    if part == "vae":
        loss = settings.loss.model_copy(update={"adversarial": 0.0})
        return settings.model_copy(update={"loss": loss})
    if part == "ldm":
        text, model = settings.text, settings.model
        changes = {"text": text.model_copy(update={"train": True}), "model": model.model_copy(update={"dropout": 0.0})}
        return settings.model_copy(update=changes)
    return settings


def train(part: str, project: Path, folder: Path) -> None:
    run, rank = folder / part, start_world().process_index
    settings = exact(part, settings_of(part, project, run, num_steps=STEPS, batch_size=BATCH, save_every=STEPS))
    open_run(settings, part)
    task = task_of(part, settings, run)
    trainer = Trainer(task, settings, run)
    noted: dict[str, np.ndarray] = {}
    batch, clip = task.batch, trainer.engine.clip_grad_norm

    def note_batch(samples, rows):
        found = batch(samples, rows)
        noted.update({f"{rows.step}/{name}": tensor.numpy().copy() for name, tensor in found.items()})
        noted[f"{rows.step}/samples"] = np.array([(sample.index, sample.epoch) for sample in samples])
        return found

    def note_gradients(most):
        if trainer.step == 0:
            named = task.module.named_parameters()
            noted.update({f"gradient/{name}": p.grad.numpy().copy() for name, p in named if p.grad is not None})
        return clip(most)

    task.batch, trainer.engine.clip_grad_norm = note_batch, note_gradients
    trainer.fit()
    np.savez(folder / f"{part}-{rank}.npz", **noted)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for stage in PARTS:
        train(stage, Path(sys.argv[1]), Path(sys.argv[2]))
    end_world()
