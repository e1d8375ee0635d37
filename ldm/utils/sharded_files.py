"""Tensors that lie in rows on several processes, in one folder: torch.distributed.checkpoint on safetensors files.

Every process writes its own file. Any number of processes reads them, each what it needs; nothing is pickled.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Size, Tensor

SHARDS = "shards"  # the folder, in a checkpoint


def is_sharded(checkpoint: Path) -> bool:
    return (checkpoint / SHARDS).is_dir()


def write(checkpoint: Path, tensors: dict[str, "Tensor"], group: Any = None) -> None:
    """Write this process's part of the tensors, by name; all processes of the `group` have to call it.

    Raises: UserError in all of them if one of them cannot write.
    """
    import torch.distributed.checkpoint as dcp

    with _named_failures(checkpoint), _without_remarks():
        dcp.save(dict(tensors), storage_writer=_writer(checkpoint), process_group=group)


def write_copies(checkpoint: Path, tensors: dict[str, "Tensor"], group: Any) -> Callable[[], None]:
    """As `write`, from copies: the tensors may change as soon as this returns. What it returns waits for the writing.

    `group`: of processes, on the CPU, that nothing else uses meanwhile.
    """
    import torch.distributed.checkpoint as dcp

    future: Any = dcp.async_save(dict(tensors), storage_writer=_writer(checkpoint), process_group=group)

    def wait() -> None:
        with _named_failures(checkpoint):
            future.result()

    return wait


def shapes(checkpoint: Path) -> dict[str, "Size"]:
    """The shape of each whole tensor, by name."""
    return {name: entry.size for name, entry in _entries(checkpoint).items()}


def read_into(checkpoint: Path, tensors: dict[str, "Tensor"]) -> None:
    """Fill these tensors, whole ones or this process's part of distributed ones; no other process is asked."""
    import torch.distributed.checkpoint as dcp

    with _without_remarks():
        dcp.load(dict(tensors), storage_reader=_reader(checkpoint), no_dist=True)


def read_whole(checkpoint: Path) -> dict[str, dict[str, "Tensor"]]:
    """All tensors, whole, by group and name: "model/conv_in.weight" is conv_in.weight of model."""
    import torch

    entries = _entries(checkpoint)
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}
    read_into(checkpoint, tensors)
    return by_group(tensors)


def by_group(tensors: dict[str, "Tensor"]) -> dict[str, dict[str, "Tensor"]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        group, name = full.split("/", 1)
        groups.setdefault(group, {})[name] = tensor
    return groups


@contextmanager
def _named_failures(checkpoint: Path) -> Iterator[None]:
    """Raises: UserError in place of what torch raises where a process cannot write."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as failed:
        rank, (error, _) = next(iter(failed.failures.items()))
        raise UserError(
            f"process {rank + 1} cannot write {checkpoint / SHARDS}: {error}; make room or choose another --output-dir"
        ) from error


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Torch remarks on one process that it is alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _entries(checkpoint: Path) -> dict[str, Any]:
    return _reader(checkpoint).read_metadata().state_dict_metadata


def _writer(checkpoint: Path) -> Any:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    return HuggingFaceStorageWriter(str(checkpoint / SHARDS), save_distributed=True)


def _reader(checkpoint: Path) -> Any:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(checkpoint / SHARDS))
