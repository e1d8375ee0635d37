"""`ldm train`: from a folder of images to a model, or one stage of a project; what `train_*.py` run.

The chain of a folder is the commands that somebody would type, one after the other in one process: data check, plan,
the stages, `ldm evaluate`, `ldm export`. Whatever ends it, the same command continues: the plan is a file that is
written once, a stage resumes from its newest checkpoint, and what is finished is skipped.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.apps.stages import STAGES, amount
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from ldm.config.settings import RunSettings

MINUTES = 180.0
YAML = (".yaml", ".yml")
FLAGS: dict[str, Any] = {"minutes": str, "memory": str, "output": str, "processes": int, "dry_run": bool}
EVALUATED = 128  # held-out images, at most
PROMPTS, PER_PROMPT = 12, 4  # of the image grid


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a model on a folder of images, or one stage",
        description="Train a model on your own images: check them, plan the training for the minutes given, train text "
        "encoder, autoencoder and U-Net, evaluate, and export a folder that diffusers loads. The same command "
        "continues what was interrupted. `ldm train clip|vae|ldm CONFIG` trains one stage.",
        epilog="Any setting may be given, such as --data.resolution 128 or --vae.train.num_steps 2000: the plan keeps "
        "it. `ldm train STAGE --help` lists them. Several GPUs: accelerate launch -m ldm.train FOLDER.",
    )
    parser.takes_settings = True
    parser.add_argument(
        "what",
        nargs="*",
        metavar="FOLDER",
        help="images, each with a .txt caption beside it (or a .parquet file, or a Hub data set); or a project file "
        "(.yaml), whose stages are trained as it says; or a stage and a project file",
    )
    parser.add_argument("--minutes", type=float, help="time for everything; used once, for the plan (default: 180)")
    parser.add_argument("-o", "--output", metavar="DIR", help="folder of the exported model (default: NAME-model)")
    parser.add_argument("--name", help="of the project: NAME.yaml and runs/NAME (default: the folder's name)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--memory", metavar="SIZE", help="8GiB, 900MiB, ... (default: the GPU's, or what RAM is free)")
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="CPU processes that divide each batch (default: one a core, at most 8; 1 if OMP_NUM_THREADS is set)",
    )


def run(args: argparse.Namespace) -> None:
    if args.words and args.words[0] in STAGES:
        return train_stage(args.words[0], args.words[1:])
    train_all(args.words)


# ---- one stage ------------------------------------------------------------------------------------------------------


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


# ---- all stages -----------------------------------------------------------------------------------------------------


def train_all(words: Sequence[str]) -> None:
    """`ldm train FOLDER` and `ldm train CONFIG`."""
    from ldm.utils.runtime import prepare_threads

    given, source = parse_words(words, "ldm train")
    output, threads = given.pop("output", None), given.get("train", {}).get("threads", 0)
    plans, dry_run = {"minutes", "memory"} & given.keys(), given.pop("dry_run", False)
    limits = limits_of(given)
    if plans and source.endswith(YAML):
        new = f"ldm plan {source} --minutes N -o planned.yaml"
        raise UserError(f"{source} says how long to train: leave out --{min(plans)}, or `{new}` first")
    if dry_run:
        return preview(source, limits[0], given, output)
    if "RANK" not in os.environ:  # before the seconds that torch takes to load; processes of a launcher say nothing
        print(f"training on {source}", flush=True)
    if (count := processes_of(given, source)) > 1:
        from ldm.training.cpu_processes import run

        print(f"training in {count} processes, one for each core; --processes 1 for one", flush=True)
        sys.exit(run(count, words))
    prepare_threads(threads)
    from ldm.training.distributed import end_world, start_world
    from ldm.training.world import from_main, together
    from ldm.utils.atomic_files import atomic_write

    # The main process plans before it joins the others: the steps that it measures must not wait for theirs.
    plans_here = os.environ.get("RANK", "0") == "0" and not source.endswith(YAML)
    config = planned(source, *limits, given) if plans_here else None
    start_world()
    with together():
        path = config or project_file(source, given)
        text = from_main(lambda: path.read_text("utf-8") if path.is_file() else "")
        if text and not path.exists():  # a node with a disk of its own
            atomic_write(path, text.encode())
        train_project(path, given, output)
    end_world()


def preview(source: str, minutes: float, given: dict, output: str | None) -> None:
    """`--dry-run`: print what would be done."""
    from ldm.cli.train_preview import lines

    given.pop("processes", None)
    project = project_file(source, given)
    if project.exists() and not source.endswith(YAML):
        check_source(project, source)
    for line in lines(source, project, minutes, given, output):
        print(line, flush=True)


def parse_words(words: Sequence[str], program: str) -> tuple[dict, str]:
    """Settings and options, nested, and the one word that names the images."""
    from ldm.config.overrides import parse_project

    given, names = parse_project(["--output" if word == "-o" else word for word in words], FLAGS)
    if len(names) != 1:
        what = "give a folder of images" if not names else f"give one folder, got {' and '.join(names[:3])}"
        raise UserError(f"{program}: {what}, such as `{program} my-images`; see {program} --help")
    return given, names[0]


def processes_of(given: dict, source: str) -> int:
    """How many CPU processes to start, by the option --processes, which is taken out of `given`. Raises: UserError."""
    from ldm.apps.stages import MIN_BATCH
    from ldm.config.loading import load
    from ldm.training.cpu_processes import useful

    chosen = given.pop("processes", None)
    if "RANK" in os.environ:  # this is one of them
        return 1
    if chosen is not None and chosen < 1:
        raise UserError(f"--processes {chosen} must be 1 or more")
    if chosen is not None or given.get("train", {}).get("threads"):
        return chosen or 1
    project = project_file(source, given)
    if not project.is_file():  # the plan halves batches down to MIN_BATCH, or takes those given
        sections = [given, *(given.get(part, {}) for part in STAGES)]
        chosen_sizes = [one.get("train", {}).get("batch_size") for one in sections]
        return useful([*MIN_BATCH.values(), *filter(None, chosen_sizes)])
    trained = [load(part, project).train for part in STAGES]
    return useful(one.batch_size // one.gradient_accumulation_steps for one in trained)


def limits_of(given: dict) -> tuple[float, float | None]:
    """The options --minutes and --memory, the latter in bytes, taken out of `given`. Raises: UserError."""
    from ldm.cli.plan import bytes_of, positive_number

    found: dict[str, float | None] = {"minutes": MINUTES, "memory": None}
    for name, read in (("minutes", positive_number), ("memory", bytes_of)):
        try:
            found[name] = read(given.pop(name)) if name in given else found[name]
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--{name} {error}") from None
    return found["minutes"] or MINUTES, found["memory"]


def project_file(source: str, given: dict) -> Path:
    """The project file of images, or `source` itself if it is one."""
    from ldm.apps.project import name_of

    if source.endswith(YAML):
        return Path(source)
    name = given.get("name") or name_of(source)
    if name != Path(name).name:
        raise UserError(f"--name {name} must be a name, not a path: its files go to {Path(name).name}.yaml and runs/")
    return Path(f"{name}.yaml")


def planned(source: str, minutes: float, memory: float | None, given: dict) -> Path:
    """The project file of a folder: the one that an earlier start wrote, else planned now."""
    from ldm.apps.project import write_project
    from ldm.cli.plan import on_stderr

    path = project_file(source, given)
    if not path.exists():
        settings = {key: value for key, value in given.items() if key != "name"}
        write_project(path, source, minutes, memory, settings, on_stderr)
        print(f"plan: written to {path}")
        return path
    check_source(path, source)
    say(f"plan: {path}, as made before; remove it to plan anew")
    return path


def check_source(project: Path, source: str) -> None:
    """Raises: UserError: a project file is of other images than these."""
    from ldm.config.loading import load

    of = load("vae", project).data.source
    if of != source and Path(of).resolve() != Path(source).resolve():
        raise UserError(f"{project} is the project of {of}, not of {source}: add --name OTHER for another project")


def train_project(config: Path, given: dict, output: str | None = None) -> None:
    """All stages of a project, its evaluation and export; what is finished is skipped."""
    from ldm.apps.project import settings_for
    from ldm.apps.stages import stages
    from ldm.config.loading import load, run_dir
    from ldm.hub.export import refuse_foreign
    from ldm.training.distributed import start_world
    from ldm.utils.runtime import prepare_threads

    chosen = {part: load(part, config, settings_for(part, given)) for part in STAGES}
    check_sharding(chosen["ldm"])
    parts = stages(chosen["ldm"])  # type: ignore[arg-type]
    prepare_threads(chosen["ldm"].train.threads)
    quiet_libraries()
    model = Path(output).expanduser() if output else Path(f"{chosen['ldm'].name}-model")
    refuse_foreign(model)  # before the work, not after it
    for number, part in enumerate(parts, start=1):
        head = f"[{number}/{len(parts)}] {STAGES[part]}"
        earlier = [run_dir(chosen[one], one) for one in parts[: number - 1]] if part == "ldm" else []
        if finished_for_main(part, chosen[part], earlier):
            say(f"{head}: finished before")
            continue
        say(f"{head}: {amount(chosen[part])}, in {run_dir(chosen[part], part)}")
        fit(part, chosen[part], began=time.time())
        forget()
    if start_world().is_main_process:
        finish(run_dir(chosen["ldm"], "ldm"), model, exported=chosen["ldm"].vae != "identity")  # type: ignore[attr-defined]
        compare(parts, chosen)
        made = model if (model / "model_index.json").is_file() else run_dir(chosen["ldm"], "ldm")
        print(f'next: ldm generate -m {made} "a prompt", or ldm app -m {made}')


def say(text: str) -> None:
    """A line of the main process."""
    from ldm.training.distributed import start_world

    if start_world().is_main_process:
        print(text, flush=True)


def finished(part: str, settings: "RunSettings", earlier: Sequence[Path] = ()) -> bool:
    """Whether a run has trained all its steps, by these settings, and written what comes after them.

    Args:
        earlier: runs that it builds on; if one was trained anew since, it is not finished.
    Raises: UserError: it was trained by settings that a continuation could not have.
    """
    from ldm.config.loading import load, run_dir
    from ldm.training.resume_rules import compare
    from ldm.training.validation import reason_to_stop, validations
    from ldm.utils import checkpoint_files as checkpoint

    run = run_dir(settings, part)
    if not (run / "config.yaml").is_file() or not checkpoint.finished(run):
        return False
    done, steps = load(part, run / "config.yaml"), settings.train.num_steps
    last = checkpoint.saved(run / "checkpoints")[-1:]  # none where they were removed to save space
    before_end = any(one.name < checkpoint.name(steps) for one in last)
    if done.train.num_steps < steps or (before_end and not reason_to_stop(validations(last[0]), settings)):
        return False
    if not all(newer(run / "final", one) for one in earlier):
        return False
    before, now = ({"settings": one.model_dump(mode="json"), "identity": {}} for one in (done, settings))
    for note in compare(before, now, (), str(run)):
        say(f"note: {run} is finished, and not trained again: {note}")
    return part != "vae" or (run / "report.json").is_file()


def finished_for_main(part: str, settings: "RunSettings", earlier: Sequence[Path]) -> bool:
    """As `finished`, by the files of the main process."""
    from ldm.training.world import from_main

    return from_main(lambda: "yes" if finished(part, settings, earlier) else "no") == "yes"


def forget() -> None:
    """Free what a stage held, so that the next one may have another precision and all of the memory."""
    import gc

    import torch
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def finish(run: Path, model: Path, exported: bool = True) -> None:
    """Evaluation, export and image grid of a finished run, unless they are there and newer than it.

    `exported`: whether diffusers has a pipeline for it; for models in pixel space it has none.
    """
    report, metrics = run.parent / "report", run.parent / "report" / "metrics.json"
    if not newer(metrics, run):
        print(f"report: {report}", flush=True)
        try:
            command("evaluate", str(run), "-o", str(report), *amount_evaluated(run))
        except Exception as error:  # too few images, say: the model is finished all the same
            print(f"no report: {error}")
    if not exported:
        return
    if not newer(model / "model_index.json", run):
        print(f"export: {model}", flush=True)
        try:
            command("export", str(run), "-o", str(model), *(["--metrics", str(metrics)] if metrics.is_file() else []))
        except UserError as error:  # of a VQModel, say, which ldm generates from, and diffusers' pipeline does not
            return print(f"no export: {error}")
    if not newer(model / "grid.png", model / "model_index.json"):
        draw_grid(run, model)


def amount_evaluated(run: Path) -> list[str]:
    """--samples for one's own images, --quick for glyphs."""
    from ldm.cli.evaluate import KNOWN, OWN, source_of

    suite = KNOWN.get(source_of(run), OWN)
    return ["--samples", str(EVALUATED)] if suite is OWN else ["--quick"] if suite.quick else []


def newer(path: Path, than: Path) -> bool:
    """Whether a file was made after a run was finished, or after another file."""
    of = than / "final" if than.is_dir() else than
    return path.exists() and path.stat().st_mtime >= of.stat().st_mtime


def command(*words: str) -> None:
    """What `ldm WORDS` does."""
    from ldm.cli.main import build_parser

    args = build_parser(list(words)).parse_args(list(words))
    args.run(args)


def draw_grid(run: Path, model: Path) -> None:
    """grid.png in the model's folder: images of held-out captions, none picked out, a row for each."""
    from ldm.config.loading import load
    from ldm.data import build
    from ldm.pipelines.loading import load_pipeline
    from ldm.utils.image_grid import image_grid, save_png

    settings = load("ldm", run / "config.yaml")
    prompts = settings.sampling.prompts or held_out(build(settings.data).validation)
    images = load_pipeline(model)(prompts, num_images_per_prompt=PER_PROMPT, seed=0).images
    save_png(image_grid(images, PER_PROMPT), model / "grid.png")
    print(f"{model / 'grid.png'}: a row for each of: {'; '.join(prompts)}")


def held_out(data: Any) -> list[str]:
    """Captions of evenly spaced validation images; one empty prompt where there are none."""
    import numpy as np

    from ldm.data import evenly_spaced_indices

    rng = np.random.default_rng(0)
    found = [data.caption(int(i), rng) for i in evenly_spaced_indices(len(data), PROMPTS)]
    return list(dict.fromkeys(found))


def compare(parts: Sequence[str], chosen: dict[str, "RunSettings"]) -> None:
    """The minutes of all stages beside those that were planned, where both are known."""
    import json

    from ldm.config.loading import run_dir
    from ldm.utils.terminal import duration_text

    spent = planned = 0.0
    for part in parts:
        log = run_dir(chosen[part], part) / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        last = json.loads(lines[-1]) if lines else {}
        if "minutes" not in last:
            return
        spent, planned = spent + last["minutes"], planned + last["planned_minutes"]
    print(f"training took {duration_text(60 * spent)}, and {duration_text(60 * planned)} were planned")
