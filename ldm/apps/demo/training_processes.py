"""Trainings that the demo starts: `ldm train` in a process of its own, which outlives the page and the demo.

All that is known of one lies in its output folder, so that a demo started later finds it again: `training.json` says
which command runs and as which process, `training.log` has what it printed. The same command typed in a shell
continues the training too.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from ldm.apps.project import name_of
from ldm.training.run_directory import locked_by
from ldm.utils import file_locks
from ldm.utils.atomic_files import atomic_write
from ldm.utils.errors import UserError

STATE, LOG, LOCK, MODEL = "training.json", "training.log", "training.lock", "model"
STAGES = ("clip", "vae", "ldm")
MINUTES = (1.0, 20_160.0)  # of a training: at most two weeks
SAME = 2.0  # seconds by which two readings of a process's start may differ
REFUSED = (
    "trainings are started only where the demo listens on this machine alone: a page that others can open must not "
    "start processes; start `ldm app` without --host"
)
LDM = (sys.executable, "-m", "ldm")


@dataclass(frozen=True)
class Started:
    """A process that was started: what is in training.json."""

    verb: str  # "plan" or "train"
    folder: str  # of the images
    minutes: float
    command: list[str]
    pid: int
    began: float  # of the process, in seconds since 1970: a process id may be given again
    stopping: bool = False


class Trainings:
    """The trainings below a folder.

    Args:
        root: where each has its output folder.
        allowed: whether processes may be started and ended; see `REFUSED`.
        program: what is run, with the words of `ldm train` or `ldm new` behind it.
    """

    def __init__(self, root: Path, allowed: bool, program: Sequence[str] = LDM):
        self.root, self.allowed, self.program = root.absolute(), allowed, tuple(program)

    def names(self) -> list[str]:
        """Those with a state on disk: first what runs, then the last started."""
        states = [path for path in self.root.glob(f"*/{STATE}") if path.is_file()]
        states.sort(key=lambda path: (self.running(path.parent.name) is None, -path.stat().st_mtime))
        return [path.parent.name for path in states]

    def plan(self, folder: Any, minutes: Any) -> str:
        """Start `ldm new`, which writes the plan and trains nothing; returns the training's name. Raises: UserError."""
        images, minutes = self._checked(folder, minutes)
        name = self._new_name(images)
        with self._starting(name) as output:
            if any((output / stage).exists() for stage in STAGES):
                raise UserError(f"{name} has begun to train: resume it, or copy the images to a folder of another name")
            plan = plan_file(output)
            plan.unlink(missing_ok=True)
            words = ["new", str(images), "--minutes", f"{minutes:g}", "--name", name, "--output", str(plan)]
            for stage in STAGES:
                words += [f"--{stage}.output_dir", str(output / stage)]
            self._start(output, "plan", str(images), minutes, words)
        return name

    def train(self, name: Any) -> None:
        """Start or resume the training of a plan: the same command both times. Raises: UserError."""
        name = self._known(name)
        with self._starting(name) as output:
            if not plan_file(output).is_file():
                raise UserError(f"{name} has no plan yet: plan it first")
            before = self.started(name)
            assert before is not None
            words = ["train", str(plan_file(output)), "--output", str(output / MODEL)]
            self._start(output, "train", before.folder, before.minutes, words)

    def stop(self, name: Any) -> None:
        """Ask the process of a training to save and end. Raises: UserError if none runs."""
        name = self._known(name)
        self._check_allowed()
        started = self.started(name)
        process = self.running(name)
        if process is None or started is None:
            raise UserError(f"{name} is not running")
        write_state(self.root / name, Started(**{**asdict(started), "stopping": True}))
        with suppress(psutil.NoSuchProcess):
            process.terminate()

    def started(self, name: str) -> Started | None:
        """What training.json says; None if there is none that can be read."""
        try:
            return Started(**json.loads((self.root / name / STATE).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def running(self, name: str) -> psutil.Process | None:
        """The process of a training, None if it has ended."""
        started = self.started(name)
        if started is None:
            return None
        with suppress(psutil.Error, ValueError, TypeError):
            process = psutil.Process(started.pid)
            same = abs(process.create_time() - started.began) <= SAME
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        return None

    def _checked(self, folder: Any, minutes: Any) -> tuple[Path, float]:
        self._check_allowed()
        if not isinstance(folder, str) or not folder.strip() or "\0" in folder:
            raise UserError("name the folder of the images")
        try:
            images = Path(folder.strip()).expanduser().absolute()
        except RuntimeError:
            raise UserError(f"{folder.strip()[:100]} is the home of nobody here") from None
        if not images.is_dir():
            raise UserError(f"{images} is no folder: name one with images, each with a .txt caption beside it")
        least, most = MINUTES
        number = minutes if isinstance(minutes, int | float) and not isinstance(minutes, bool) else 0
        if not least <= number <= most:
            raise UserError(f"minutes must be from {least:g} to {most:,.0f}, got {str(minutes)[:20]}")
        return images, float(number)

    def _check_allowed(self) -> None:
        if not self.allowed:
            raise UserError(REFUSED)

    def _new_name(self, images: Path) -> str:
        """The name of a training of these images. Raises: UserError if another one has it."""
        name = name_of(str(images))
        before = self.started(name)
        if before is not None and Path(before.folder) != images:
            raise UserError(f"{name} is a training of {before.folder}: give the folder {images} another name")
        home = self.root / name
        if before is None and home.exists() and any(path.name not in (LOCK, LOG) for path in home.iterdir()):
            raise UserError(f"{home} has files of something else: give the folder {images} another name")
        return name

    def _known(self, name: Any) -> str:
        if not isinstance(name, str) or name not in self.names():
            raise UserError("there is no such training: choose one of the list")
        return name

    @contextmanager
    def _starting(self, name: str) -> Iterator[Path]:
        """The output folder, while nobody else can start a process in it. Raises: UserError where one runs."""
        self._check_allowed()
        output = self.root / name
        try:
            output.mkdir(parents=True, exist_ok=True)
            lock = open(output / LOCK, "a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write to {output}: {error.strerror or error}") from None
        with lock:
            if not file_locks.lock(lock.fileno()):
                raise UserError(f"{name} is being started by another page")
            if self.running(name):
                raise UserError(f"{name} is running: stop it first")
            for stage in STAGES:
                if (output / stage).is_dir() and (owner := locked_by(output / stage)):
                    raise UserError(f"{name} is in training by {owner}: end that first")
            yield output

    def _start(self, output: Path, verb: str, folder: str, minutes: float, words: list[str]) -> None:
        """Start a process that outlives this one, and record it."""
        command = [*self.program, *words]
        apart: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with open(output / LOG, "ab") as log:
            log.write(f"\n$ {time.strftime('%Y-%m-%d %H:%M')} ldm {' '.join(words)}\n".encode())
            log.flush()
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, **apart
                )
            except OSError as error:
                raise UserError(f"the process cannot be started: {error.strerror or error}") from None
        began = time.time()
        with suppress(psutil.Error):
            began = psutil.Process(process.pid).create_time()
        write_state(output, Started(verb, folder, minutes, command, process.pid, began))
        threading.Thread(target=process.wait, daemon=True).start()  # else it stays as a zombie once it has ended


def write_state(output: Path, started: Started) -> None:
    atomic_write(output / STATE, json.dumps(asdict(started), indent=1).encode())


def plan_file(output: Path) -> Path:
    """The project file of a training: it says where its stages lie, so `ldm train FILE` continues it anywhere."""
    return output / f"{output.name}.yaml"
