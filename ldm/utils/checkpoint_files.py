"""Checkpoints that are complete or absent: staged folder, fsync, manifest with sizes and sha256 last, one rename.

A checkpoint holds model, EMA and optimizer tensors (safetensors; of a training in shards in `shards`, see
`ldm.utils.sharded_files`) and the step (JSON). Nothing else is needed to
resume: batches, noise, timesteps and dropout are functions of (seed, step), and the learning rate of the step.

Formats of the manifest: 1, whose state is step, seed and EMA steps; 2, with settings and the digests of data and parts.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.utils import atomic_files as disk
from ldm.utils import sharded_files
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT, READABLE = 2, (1, 2)
MANIFEST = "manifest.json"
Content = tuple[dict[str, dict[str, "Tensor"]], dict]  # tensors by group and name, and the state


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; on success it is synced, given a manifest and replaces `folder` atomically.

    On an error nothing is left behind; what a killed process left there is removed by the next.
    Raises: UserError (`disk.DiskFull` where that is the reason) if it cannot be written.
    """
    with disk.readable_io_errors(folder, "make room or choose another folder"), disk.exclusive_lock(folder):
        with with_manifest(folder) as stage:
            yield stage


@contextmanager
def with_manifest(folder: Path) -> Iterator[Path]:
    """As `staged`, for a caller who holds the lock of `folder` and reports errors."""
    with disk.staged(folder) as stage:
        yield stage
        _write_manifest(stage)


def digest(path: Path) -> str:
    """sha256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> str | None:
    """Why the folder is not valid, or None if every file has the size and sha256 of its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "no readable manifest"
    try:
        if manifest["format"] not in READABLE:
            return f"format {manifest['format']}, this version reads {' and '.join(map(str, READABLE))}"
        for name, entry in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry["size"]:
                return f"{name} is missing or has another size"
            if digest(path) != entry["sha256"]:
                return f"{name} is damaged (sha256 differs)"
    except (AttributeError, KeyError, TypeError):  # JSON, but of another shape
        return "no readable manifest"
    return None


def save(folder: Path, tensors: dict[str, dict[str, "Tensor"]], state: dict) -> None:
    """Write one checkpoint: each group of tensors to its own safetensors file, `state` as JSON."""
    from safetensors.torch import save_file

    with staged(folder) as stage:
        for name, group in tensors.items():
            save_file(
                {key: tensor.detach().contiguous().cpu() for key, tensor in group.items()},
                stage / f"{name}.safetensors",
            )
        (stage / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")


def load(folder: Path, whole: bool = True) -> Content:
    """Tensors and state of a checkpoint; those that lie in shards only if they are wanted whole.

    Raises: UserError if it is not valid.
    """
    if fault := verify(folder) or (None if (folder / "state.json").is_file() else "it has no state.json"):
        raise UserError(f"checkpoint {folder} cannot be used: {fault}; --resume auto takes the newest whole one")
    from safetensors.torch import load_file

    groups = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    if whole and sharded_files.is_sharded(folder):
        groups = sharded_files.read_whole(folder)
    return groups, json.loads((folder / "state.json").read_text(encoding="utf-8"))


def load_newest(folder: Path, whole: bool = True) -> tuple[Path, Content] | None:
    """The latest valid checkpoint and its content, read as soon as it is verified; None if there is none."""
    for path in reversed(saved(folder)):
        with suppress(UserError):
            return path, load(path, whole)
    return None


def name(step: int) -> str:
    return f"step-{step:08d}"


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, verified or not."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name)]
    return sorted(found)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies, or None."""
    return next((path for path in reversed(saved(folder)) if verify(path) is None), None)


def finished(run: Path) -> bool:
    """Whether `run`/final is valid and no older than the newest checkpoint: else training went on after it."""
    made = [
        folder.stat().st_mtime_ns for folder in (*saved(run / "checkpoints")[-1:], run / "final") if folder.exists()
    ]
    return verify(run / "final") is None and made == sorted(made)


def set_aside(folder: Path) -> list[Path]:
    """Checkpoints that a run no longer uses; see `supersede`."""
    return sorted(folder.glob("superseded-step-*"))


def prune(folder: Path, keep: int, superseded: bool = False, spare: str | None = None) -> None:
    """Delete all but the newest `keep` checkpoints and the one named `spare`, and if asked those set aside."""
    old = [path for path in saved(folder)[:-keep] if path.name != spare]
    delete(old + (set_aside(folder) if superseded else []))


def delete(folders: list[Path]) -> None:
    """Delete checkpoints. A folder without a manifest is not a checkpoint and stays."""
    for path in folders:
        if (path / MANIFEST).is_file():
            shutil.rmtree(path, ignore_errors=True)  # what cannot be deleted now is tried again at the next saving


def supersede(path: Path) -> Path:
    """Exclude a checkpoint from the run without deleting it; returns its new path."""
    aside = path.with_name(f"superseded-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest(path)} for path in files
    }
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": entries}, indent=1), encoding="utf-8")
