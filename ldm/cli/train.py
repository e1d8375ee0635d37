"""`ldm train`: from a folder of images to a model, or one stage of a project; what `train_*.py` run.

The chain of a folder is the commands that somebody would type, one after the other in one process: data check, plan,
the stages, `ldm evaluate`, `ldm export`. Whatever ends it, the same command continues: the plan is a file that is
written once, a stage resumes from its newest checkpoint, and what is finished is skipped.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.apps.stages import STAGES
from ldm.cli.train_project import say, train_project
from ldm.cli.train_stage import train_stage
from ldm.utils.errors import UserError

MINUTES = 180.0
YAML = (".yaml", ".yml")
FLAGS: dict[str, Any] = {"minutes": str, "memory": str, "output": str, "processes": int, "dry_run": bool}


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
