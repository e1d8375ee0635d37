"""One stage of a training: what `ldm train STAGE` and `train_*.py` run, and each stage of `ldm train FOLDER`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.apps.stages import STAGES

if TYPE_CHECKING:
    from ldm.config.settings import RunSettings


def train_stage(part: str, argv: Sequence[str] | None = None) -> None:
    """One training, as the command line says.

    Args:
        part: "clip", "vae" or "ldm".
        argv: the arguments; None = those of this process.
    """
    from ldm.config.loading import run_dir
    from ldm.config.overrides import parse
    from ldm.utils.runtime import check_utf8, prepare_threads
    from ldm.utils.torchvision_compat import patch_torchvision

    check_utf8(sys.argv[1:] if argv is None else argv)
    settings, invocation = parse(part, argv)
    run, main_process = run_dir(settings, part), os.environ.get("RANK", "0") == "0"
    prepare_threads(settings.train.threads)
    if invocation.dry_run:
        print("measuring some steps ...", file=sys.stderr, flush=True)
    elif main_process:
        print(f"{STAGES[part]}: {invocation.config}, in {run}", flush=True)
    patch_torchvision()
    if invocation.dry_run:
        from ldm.pipelines.component_classes import defer_packages

        defer_packages()  # a few steps need one class of them
        from ldm.training.cost_estimate import plan

        return print(plan(part, settings, invocation.config))
    from ldm.training.distributed import end_world, start_world
    from ldm.training.world import together

    start_world()
    with together():
        fit(part, settings, resume=invocation.resume, allow_changed=invocation.allow_changed)
    if main_process and (run / "final").is_dir():
        print(next_step(part, settings, invocation.config, run), flush=True)
    end_world()


def next_step(part: str, settings: Any, config: Any, run: Path) -> str:
    """What comes after a finished stage: the next one, or images."""
    if part == "ldm":
        points = settings.denoiser == "mlp"
        draw = f"ldm sample {run} -o points.png" if points else f'ldm generate -m {run} "a prompt"'
        return f"next: {draw}; those of the training are in {run / 'samples'}"
    from ldm.apps.stages import stages
    from ldm.config.loading import load

    order = list(STAGES)
    project: Any = load("ldm", config)
    later = [one for one in stages(project) if order.index(one) > order.index(part)]
    return f"next: ldm train {(later or ['ldm'])[0]} {config}"


def fit(
    part: str,
    settings: "RunSettings",
    resume: str = "auto",
    allow_changed: Sequence[str] = (),
    began: float | None = None,
) -> None:
    """Train a stage in its run folder, from its newest checkpoint if there is one.

    Args:
        resume, allow_changed: see `ldm.training.trainer.Trainer.fit`.
        began: when it was started, in seconds since 1970; None = with this process.
    """
    from ldm.data import build
    from ldm.training.distributed import start_world
    from ldm.training.eight_bit import check_there
    from ldm.training.launcher import followed
    from ldm.training.run_directory import open_run
    from ldm.training.trainer import Trainer

    quiet_libraries()
    state = start_world()
    settings, notes = followed(part, settings, state.device)
    if part == "ldm":
        check_sharding(settings)
    if settings.optim.name == "adamw8bit":  # before the work too
        check_there(state.device)
    # The main process makes what a shared disk lacks, then the first of each node what its own lacks, then all read.
    with state.main_process_first(), state.local_main_process_first():
        run = open_run(settings, part)
        data = build(settings.data)
    task = task_of(part, settings, data, run, state.device)  # by all together: they share the encoding
    trainer = Trainer(task, settings, run)
    for note in notes:
        trainer.log.say(note)
    trainer.log.began = began or trainer.log.began
    trainer.fit(resume, allow_changed)
    if part == "vae" and trainer.accelerator.is_main_process:
        from ldm.evaluation.autoencoder_report import write_report
        from ldm.models.autoencoder import load_vae

        write_report(load_vae(run), data.validation, run, data.train)


def check_sharding(settings: Any) -> None:
    """Raises: UserError, before the work, for a setting of a denoiser with which the launcher's FSDP does not work."""
    from ldm.training.distributed import precision, start_world
    from ldm.training.sharding_options import check_settings

    check_settings(settings, precision(settings.train.mixed_precision, start_world().device))


def quiet_libraries() -> None:
    """Keep progress bars and remarks of libraries from between the lines of a training."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()
    of_diffusers.set_verbosity_error()
    of_transformers.disable_progress_bar()


def task_of(part: str, settings: Any, data: Any, run: Path, device: Any) -> Any:
    """What a stage trains."""
    if part == "clip":
        from ldm.training.tasks.clip import ClipTask

        return ClipTask(settings, data, run)
    if part == "vae":
        from ldm.training.tasks.vae import VaeTask

        return VaeTask(settings, data)
    from ldm.evaluation.training_hook import copy_hook, hook_for
    from ldm.training.tasks.denoising import denoising_task
    from ldm.training.tasks.distillation import distillation_task
    from ldm.training.tasks.finetuning import finetuning_task

    finished = finetuning_task if settings.start.model else denoising_task
    build_task = distillation_task if settings.distill.teacher else finished
    task = build_task(settings, data, run, device, hook_for(settings))
    task.copy_rate = copy_hook(settings, data)
    return task
