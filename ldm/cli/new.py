"""`ldm new`: the project file that `ldm train FOLDER` would train by, to look at and to edit first."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm.utils.errors import UserError


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "new",
        help="write a project file for a folder of images",
        description="Check the images, plan the training for this device, and write a commented project file.",
        epilog="Any setting may be given, such as --data.resolution 128 or --ldm.sampling.guidance_scale 2: the plan "
        "keeps it. `ldm train FILE` then trains by the file.",
    )
    parser.takes_settings = True
    parser.add_argument("folder", nargs="*", metavar="FOLDER", help="images, each with a .txt caption beside it")
    parser.add_argument("-o", "--output", metavar="FILE", help="project file to write (default: FOLDER's name.yaml)")
    parser.add_argument("--minutes", type=float, help="time for everything (default: 180)")
    parser.add_argument("--memory", metavar="SIZE", help="8GiB, 900MiB, ... (default: the GPU's, or what RAM is free)")


def run(args: argparse.Namespace) -> int:
    from ldm.apps.project import name_of, write_project
    from ldm.cli.plan import on_stderr
    from ldm.cli.train import limits_of, parse_words, processes_of

    given, source = parse_words(args.words, "ldm new")
    processes = processes_of(given, source)
    (minutes, memory), output = limits_of(given), given.pop("output", None)
    path = Path(output or f"{given.pop('name', None) or name_of(source)}.yaml").expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"-o {path} must end in .yaml")
    if path.exists():
        raise UserError(f"{path} exists: name another file with -o, or remove it first")
    with planned_as_one_of(processes):
        write_project(path, source, minutes, memory, given, on_stderr)
    print(f"{path}: look at it, then: ldm train {path}")
    return 0


@contextmanager
def planned_as_one_of(processes: int) -> Iterator[None]:
    """Measure as one of the processes that `ldm train` starts would: with its part of the cores and of the memory."""
    from ldm.utils.runtime import prepare_threads, usable_cores

    before = dict(os.environ)
    if processes > 1:
        prepare_threads(max(1, usable_cores() // processes))
        os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
