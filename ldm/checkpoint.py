"""Checkpoints that are whole or absent: staged folder, fsync, manifest with sizes and sha256 last, one rename.

A checkpoint holds model, EMA and optimizer tensors (safetensors) and the step (JSON). Nothing else is needed to
resume: batches, noise, timesteps and dropout are functions of (seed, step), and the learning rate of the step.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ldm.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary sibling to fill; on success it is synced, given a manifest and renamed to `folder`.

    An existing `folder` is replaced as a whole. On an error nothing is left behind.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _write_manifest(temporary)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        raise UserError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    if manifest.get("format") != FORMAT:
        return f"format {manifest.get('format')}, this version reads {FORMAT}"
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


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in saved(folder)[:-keep]:
        shutil.rmtree(path)


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
