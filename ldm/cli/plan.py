"""`ldm plan`: settings that train in a given time and memory, as flags and as a file for the trainers."""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.utils.errors import UserError

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="fit a training into given minutes and memory",
        description="Propose the widths, batch sizes and steps of all stages that a config trains, from what a few "
        "real steps take on this device, and predict time and memory.",
        epilog="A planned run reports at its end how long it was predicted to take.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="project file to start from")
    parser.add_argument(
        "--minutes", type=minutes_from, required=True, help="for all stages together, one after the other"
    )
    parser.add_argument(
        "--memory", type=bytes_of, metavar="SIZE", help="8GiB, 900MiB, ... (default: the GPU's, or what RAM is free)"
    )
    parser.add_argument("-o", "--output", type=Path, help="write a project file that extends CONFIG")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ldm.utils.runtime import prepare_threads

    prepare_threads(args.threads)
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


def minutes_from(text: str) -> float:
    """'90' -> 90.0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def bytes_of(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"must be a size such as 8GiB or 900MiB, got {text!r}")
    return float(match[1]) * UNITS[match[2]]
