"""Checkpoints that are whole or absent: staged folder, fsync, manifest with sizes and sha256 last, one rename.

A checkpoint holds model, EMA and optimizer tensors (safetensors) and the step (JSON). Nothing else is needed to
resume: batches, noise, timesteps and dropout are functions of (seed, step), and the learning rate of the step.

Formats of the manifest: 1, whose state is step, seed and EMA steps; 2, with settings and the digests of data and parts.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ldm.errors import UserError

FORMAT, READABLE = 2, (1, 2)
MANIFEST = "manifest.json"
# what a killed process leaves: .NAME.HOST-PID-START.tmp, and .old of what it was about to replace
LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<host>[^.]*)-(?P<pid>\d+)-(?P<start>\d+)\.(?P<kind>tmp|old)")


class DiskFull(UserError):
    """There is no room for a file, or it may not grow so far."""


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary sibling to fill; on success it is synced, given a manifest and renamed to `folder`.

    An existing `folder` is replaced as a whole. On an error nothing is left behind; what a killed process left there
    is swept away by the next.
    Raises: UserError (`DiskFull` where that is the reason) if it cannot be written.
    """
    sweep(folder.parent)
    temporary, old = (folder.with_name(f".{folder.name}.{_me()}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _write_manifest(temporary)
        if folder.exists():
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unwritable(path: Path, error: Exception) -> UserError:
    """What to tell a user whose disk is full, or who may not write there."""
    reason = getattr(error, "strerror", None) or str(error)
    number = getattr(error, "errno", None) or int((re.findall(r"os error (\d+)", reason) or [0])[0])
    if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"cannot write {path}: {reason}")
    existing = next(place for place in path.absolute().parents if place.exists())
    free = shutil.disk_usage(existing).free / 2**20
    return DiskFull(f"cannot write {path}: {reason}, {free:.1f} MiB are free there; make room and start again")


def sweep(folder: Path) -> None:
    """Clear away what processes of this machine that no longer live left half done in `folder`.

    A whole folder that had been moved aside to be replaced, and was not, gets its name back.
    """
    found = [(path, LEFTOVER.fullmatch(path.name)) for path in folder.glob(".*")] if folder.is_dir() else []
    for path, parts in found:
        if not parts or parts["host"] != _host() or _lives(int(parts["pid"]), int(parts["start"])):
            continue
        if parts["kind"] == "old" and not (folder / parts["name"]).exists():
            path.rename(folder / parts["name"])
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())


def _me() -> str:
    return f"{_host()}-{os.getpid()}-{psutil.Process().create_time():.0f}"


def _lives(pid: int, start: int) -> bool:
    """Whether that process still runs; another with its number does not count."""
    try:
        return abs(psutil.Process(pid).create_time() - start) < 10
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # of another user, who may be at work
        return True


def digest(path: Path) -> str:
    """sha256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> str | None:
    """Why the folder is not whole, or None if every file has the size and sha256 of its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return "no readable manifest"
    if manifest.get("format") not in READABLE:
        return f"format {manifest.get('format')}, this version reads {' and '.join(map(str, READABLE))}"
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["size"]:
            return f"{name} is missing or has another size"
        if digest(path) != entry["sha256"]:
            return f"{name} is damaged (sha256 differs)"
    return None


def save(folder: Path, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> None:
    """Write one checkpoint: each group of tensors to its own safetensors file, `state` as JSON."""
    with staged(folder) as stage:
        for name, group in tensors.items():
            save_file(
                {key: tensor.detach().contiguous().cpu() for key, tensor in group.items()},
                stage / f"{name}.safetensors",
            )
        (stage / "state.json").write_text(json.dumps(state, indent=1))


def load(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """Tensors and state of a checkpoint. Raises: UserError if it is not whole."""
    if fault := verify(folder) or (None if (folder / "state.json").is_file() else "it has no state.json"):
        raise UserError(f"checkpoint {folder} cannot be used: {fault}; --resume auto takes the newest whole one")
    groups = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    return groups, json.loads((folder / "state.json").read_text())


def name(step: int) -> str:
    return f"step-{step:08d}"


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, verified or not."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name)]
    return sorted(found)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies, or None."""
    return next((path for path in reversed(saved(folder)) if verify(path) is None), None)


def set_aside(folder: Path) -> list[Path]:
    """Checkpoints that a run turned away from; see `supersede`."""
    return sorted(folder.glob("superseded-step-*"))


def prune(folder: Path, keep: int, superseded: bool = False) -> None:
    """Delete all but the newest `keep` checkpoints, and if asked those set aside."""
    delete(saved(folder)[:-keep] + (set_aside(folder) if superseded else []))


def delete(folders: list[Path]) -> None:
    """Delete checkpoints. A folder without a manifest is none of ours and stays."""
    for path in folders:
        if (path / MANIFEST).is_file():
            shutil.rmtree(path, ignore_errors=True)  # what cannot be deleted now is tried again at the next saving


def supersede(path: Path) -> Path:
    """Take a checkpoint out of the row without deleting it; returns its new place."""
    aside = path.with_name(f"superseded-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse at once what the disk cannot hold. Raises: UserError with both numbers of bytes."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 2**20:,.1f} MiB free, and {what} take {needed / 2**20:,.1f} MiB: "
            "make room, or choose another place"
        )


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {}
    for path in files:
        _sync(path)
        entries[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "files": entries}, indent=1))
    _sync(manifest)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
