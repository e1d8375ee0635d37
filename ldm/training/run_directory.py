"""A run directory: where a trainer writes, its lock, what it was started with, and the runs beside it."""

import json
import os
import platform
import re
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import IO

from ldm.config.loading import run_dir, to_yaml
from ldm.config.settings import RunSettings
from ldm.utils import file_locks
from ldm.utils.atomic_files import atomic_write
from ldm.utils.errors import UserError
from ldm.utils.runtime import launched_processes

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "datasets",
    "numpy",
    "pillow",
    "open_clip_torch",
    "xformers",
)
# For estimates of energy, on the high side: a server's CPU of 96 cores may draw 360 W, a desktop's of 10 cores 125 W.
CORE_WATTS = 10.0
GPU_WATTS = 300.0  # where nvidia-smi does not tell the limit
LOCK = "lock.json"  # who writes to a run: process, machine and since when
_locks: dict[Path, IO[str]] = {}  # held until this process ends, however it ends


def open_run(settings: RunSettings, part: str) -> Path:
    """Make the run directory and, as the main process, take its lock.

    Raises: UserError if nothing can be written there, or if another process is training there.
    """
    run = run_dir(settings, part)
    try:
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {run}: {error.strerror or error}; choose another --output-dir") from error
    if os.environ.get("RANK", "0") == "0":
        lock_run(run)
    return run


def lock_run(run: Path) -> None:
    """Hold the lock of a run until this process ends. Raises: UserError if another process trains there."""
    path = (run / LOCK).resolve()
    if path in _locks:
        return
    file = open(path, "a+", encoding="utf-8")
    if not file_locks.lock(file.fileno(), private=True):  # a loader's workers do not inherit it
        owner = _owner(file)
        raise UserError(f"{run} is in use by {owner}: wait for it, end it, or choose another --output-dir")
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
    file.flush()
    _locks[path] = file


def _owner(file: IO[str]) -> str:
    file.seek(0)
    owner = owner_text(file.read())
    file.close()
    return owner


def owner_text(recorded: str) -> str:
    """'process 12 on host since ...', from the content of a lock."""
    try:
        owner = json.loads(recorded)
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def locked_by(run: Path) -> str | None:
    """Who trains in a run at this moment, None if no other process does."""
    path = (run / LOCK).resolve()
    if path in _locks:  # a second descriptor of the file would end our own lock when it is closed
        return None
    with suppress(OSError), open(path, "r+", encoding="utf-8") as file:
        if not file_locks.lock(file.fileno(), private=True):
            return _owner(file)
    return None


def record(run: Path, settings: RunSettings) -> None:
    """Write config.yaml and versions.json: what the run was last started with, once that start is known to be good."""
    replace_text(run / "config.yaml", to_yaml(settings))
    replace_text(run / "versions.json", json.dumps(versions(), indent=1))


def versions() -> dict[str, str | float]:
    """Versions of Python, the platform and the packages that decide a run, and the hardware it runs on."""
    found: dict[str, str | float] = {"python": platform.python_version(), "machine": platform.platform()}
    found |= {"hardware": hardware(), "watts": watts()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """The GPU's name, or else the CPU's with its number of cores: what the minutes of a run were spent on."""
    import torch

    number = launched_processes()
    if _on_gpu():
        return f"{number} x " * (number > 1) + torch.cuda.get_device_name()
    return f"{cpu_name()}, {os.cpu_count()} cores"


def watts() -> float:
    """What the processes of this run may draw: the power limits of their GPUs, or CORE_WATTS for each busy core."""
    import torch

    number = launched_processes()
    if not _on_gpu():
        return CORE_WATTS * min(os.cpu_count() or 1, number * torch.get_num_threads())
    command = ["nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
        return number * max(map(float, output.split()))
    except (OSError, ValueError, subprocess.SubprocessError):  # no such program, or a device without a limit
        return number * GPU_WATTS


def _on_gpu() -> bool:
    import torch

    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return torch.cuda.is_available() and not asked_for_cpu


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model name where the system tells it, else its architecture."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name[ \t]*:[ \t]*(\S.*)$", text, flags=re.MULTILINE)
    return " ".join(named[1].split()) if named else platform.processor() or platform.machine()


def sibling(run: Path, part: str) -> Path:
    """The run of another stage of the same project: runs/glyphs/ldm -> runs/glyphs/vae."""
    return run.parent / part


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    atomic_write(path, text.encode())
