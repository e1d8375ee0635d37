"""What the demo shows of a training that it started: its state in a line, plan, log, curves and image grids."""

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from ldm.apps.demo.training_monitor import Watched, watch
from ldm.apps.demo.training_processes import LOG, MODEL, STAGES, Trainings, plan_file
from ldm.utils.errors import UserError

TAIL = 16 * 2**10  # bytes of the log that are read, from its end
LINES = 30  # of it, shown
NAMES = {"clip": "text encoder", "vae": "autoencoder", "ldm": "U-Net"}


@dataclass(frozen=True)
class Status:
    """Attributes: state: one line; command: what continues it in a shell; can: of "plan", "train", "stop"."""

    state: str
    plan: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    command: str = ""
    can: frozenset[str] = frozenset()
    watched: Watched | None = None  # of the stage that wrote last


def status_of(trainings: Trainings, name: str) -> Status:
    """The state of a training. Raises: UserError: it is none of `Trainings.names`."""
    started = trainings.started(name) if name in trainings.names() else None
    if started is None:
        raise UserError("there is no such training: choose one of the list")
    output = trainings.root / name
    stage = newest_stage(output)
    watched = watch(trainings.root, f"{name}/{stage}") if stage else None
    if trainings.running(name):
        state, can = _running(started.verb, started.stopping, stage, watched), {"stop"}
    else:
        state, can = _ended(output, stage)
    words = started.command[len(trainings.program) :] if started.verb == "train" else []
    command = shlex.join(["ldm", *words]) if words else ""
    return Status(state, plan_lines(output), log_tail(output), command, frozenset(can), watched)


def _running(verb: str, stopping: bool, stage: str | None, watched: Watched | None) -> str:
    if stopping:
        return "stopping: it saves a checkpoint and ends"
    if verb == "plan":
        return "planning: some steps of each network are measured"
    return f"training the {NAMES[stage]}: {watched.text}" if stage and watched else "training: preparing the images"


def _ended(output: Path, stage: str | None) -> tuple[str, set[str]]:
    """The state of a training whose process has ended, and what may be done."""
    if following := next_command(output):
        return f"finished; next: {following}", set()
    if not plan_file(output).is_file():
        return f"no plan was made: {last_said(output, 'error: ') or 'see the log'}", {"plan"}
    error = last_said(output, "error: ")
    if stage is None:
        return (f"it did not start: {error}" if error else "planned: read the plan, then start it"), {"plan", "train"}
    return f"not running{f' ({error})' if error else ''}: Resume continues from its last checkpoint", {"train"}


def newest_stage(output: Path) -> str | None:
    """The stage that wrote into its log last; None if none has begun."""
    logs = {stage: output / stage / "log.jsonl" for stage in STAGES}
    begun = [stage for stage, log in logs.items() if log.is_file()]
    return max(begun, key=lambda stage: logs[stage].stat().st_mtime, default=None)


def last_said(output: Path, opening: str) -> str:
    """The last line of the last start that begins like this, without the beginning; '' if there is none."""
    lines = log_tail(output)
    begun = max((i for i, line in enumerate(lines) if line.startswith("$ ")), default=0)
    found = [line for line in lines[begun:] if line.startswith(opening)]
    return found[-1].removeprefix(opening) if found else ""


def next_command(output: Path) -> str:
    """What a training that is complete says may follow; '' of one that is not."""
    if last_said(output, "error: "):
        return ""
    model = output / MODEL
    if (model / "model_index.json").is_file():
        return f"ldm app -m {model}"
    following = last_said(output, "next: ldm ")
    return f"ldm {following}" if following else ""


def plan_lines(output: Path) -> list[str]:
    """What the plan says of each stage: the comments of the project file."""
    try:
        lines = plan_file(output).read_text("utf-8").splitlines()
    except OSError:
        return []
    return [line.removeprefix("# ") for line in lines if line.startswith("# ")]


def log_tail(output: Path) -> list[str]:
    """The last lines of the log; of a line that was written over, its last state."""
    try:
        with (output / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n") if line.strip()][-LINES:]
