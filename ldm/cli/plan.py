"""`ldm plan`: settings that train in a given time and memory, as flags and as a file for the trainers.

With `--gpu`, what the settings as they are take on GPUs that are not at hand.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.apps.gpus import EFFICIENCY, GPUS
from ldm.utils.errors import UserError

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="fit a training into given minutes and memory",
        description="Propose the widths, batch sizes and steps of all stages that a config trains, from what a few "
        "real steps take on this device, and predict time and memory. With --gpu: what the config takes on GPUs that "
        "are not here.",
        epilog="A planned run reports at its end how long it was predicted to take. With --gpu nothing is measured: "
        "docs/scaling.md has the formulas.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="project file to start from")
    parser.add_argument("--minutes", type=positive_number, help="for all stages together, one after the other")
    parser.add_argument(
        "--memory", type=bytes_of, metavar="SIZE", help="8GiB, 900MiB, ... (default: the GPU's, or what RAM is free)"
    )
    parser.add_argument("-o", "--output", type=Path, help="write a project file that extends CONFIG")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    away = parser.add_argument_group("GPUs that are not here")
    away.add_argument("--gpu", metavar="NAME", help="h100, a100, ... (an unknown name lists them)")
    away.add_argument("--gpus", type=count_of, default=1, metavar="N", help="how many (default: 1)")
    away.add_argument("--images", type=count_of, metavar="N", help="of the data set: 50000, 3M (default: counted)")
    away.add_argument("--epochs", type=positive_number, default=1.0, help="how often the U-Net sees each (default: 1)")
    away.add_argument(
        "--efficiency", type=positive_number, default=EFFICIENCY, help="of the peak FLOP/s (default: %(default)s)"
    )
    away.add_argument("--price", type=positive_number, help="of a GPU for an hour, for the cost")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ldm.utils.runtime import prepare_threads

    prepare_threads(args.threads)
    if (args.minutes is None) == (args.gpu is None):
        raise UserError("give either --minutes, to plan for this device, or --gpu, for GPUs that are not here")
    if args.gpu:
        print(plan_away(args))
        return 0
    from ldm.apps.budget import propose

    found = propose(args.config, args.minutes, args.memory, say=on_stderr)
    print(table(found))
    if args.output:
        write(args.output, args.config, found)
        print(f"\n{args.output} holds this:")
    for one in found:
        file = [args.output] if args.output else [args.config, *flags(one.changes)]
        print(" ".join(map(str, [f"ldm train {one.part}", *file])))
    return 0


def plan_away(args: argparse.Namespace) -> str:
    """The plan for GPUs that are not here. Raises: UserError for one that is not known."""
    from ldm.apps.cluster import report
    from ldm.config.loading import load
    from ldm.training.cost_estimate import training_samples

    if args.gpu not in GPUS:
        raise UserError(f"--gpu {args.gpu} is not known: give one of {', '.join(GPUS)}")
    images = args.images or training_samples(load("ldm", args.config).data)
    return report(args.config, args.gpu, args.gpus, images, args.epochs, args.efficiency, args.price)


def on_stderr(line: str) -> None:
    """Say what has just been measured."""
    print(line, file=sys.stderr, flush=True)


def table(found: list) -> str:
    """A line for each part, and the sum."""
    from ldm.apps.budget import shape_text
    from ldm.training.cost_estimate import size_text
    from ldm.utils.terminal import duration_text

    head = (
        f"{'part':<5}{'parameters':>12}{'steps':>8}{'batch':>7}{'images':>9}{'images/s':>10}{'memory':>10}{'time':>12}"
        "  widths"
    )
    lines = [head]
    for one in found:
        train = one.settings.train
        speed = train.batch_size / one.forecast.step_seconds(train.batch_size)
        batch = f"{train.batch_size}" + (f"/{n}" if (n := train.gradient_accumulation_steps) > 1 else "")
        size = one.forecast.cost.exported / 1e6
        lines.append(
            f"{one.part:<5}{size:>10.2f} M{train.num_steps:>8}{batch:>7}{one.images:>9}{speed:>10.1f}"
            f"{size_text(one.memory):>10}{duration_text(one.seconds):>12}  {shape_text(one.settings)}"
        )
    whole = sum(one.seconds for one in found)
    return "\n".join(
        [*lines, f"{'all':<5}{max(one.memory for one in found) / 2**30:>56.2f} GiB{duration_text(whole):>12}"]
    )


def flags(changes: dict[str, Any], prefix: str = "--") -> Iterator[str]:
    """{'train': {'num_steps': 9}} as --train.num_steps 9."""
    for name, value in changes.items():
        if isinstance(value, dict):
            yield from flags(value, f"{prefix}{name}.")
        else:
            yield from (f"{prefix}{name}", *(map(str, value) if isinstance(value, list) else [str(value)]))


def write(path: Path, config: Path, found: list) -> None:
    """A project file with the changes of every part. Raises: UserError if it would extend itself or be another's."""
    import os

    from ldm.config.yaml_io import dump

    if path.resolve() == config.resolve():
        raise UserError(f"-o {path} is the config itself: name another file")
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"-o {path} must end in .yaml")
    base = os.path.relpath(config.resolve(), path.resolve().parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump({"extends": base} | {one.part: one.changes for one in found}), encoding="utf-8")


def positive_number(text: str) -> float:
    """'90' -> 90.0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def count_of(text: str) -> int:
    """'50000', '50k', '3M' or '1G' -> how many, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)", text.strip().lower())
    number = round(float(match[1]) * 1000 ** " kmg".index(match[2] or " ")) if match else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a number such as 50000, 50k or 3M, got {text!r}")
    return number


def bytes_of(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"must be a size such as 8GiB or 900MiB, got {text!r}")
    return float(match[1]) * UNITS[match[2]]
