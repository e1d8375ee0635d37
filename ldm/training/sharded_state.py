"""Checkpoints of a training in shards: every process writes and reads its own part, and all call these methods.

A folder is complete or absent, as any checkpoint's: the main process makes it under another name, all write into it,
and once all have, it adds the manifest and renames it. Any number of processes continues from it, in shards or whole.
"""

import json
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from ldm.training import world
from ldm.training.state import LOWER_RATE, TrainingState
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils import sharded_files
from ldm.utils.atomic_files import DiskFull
from ldm.utils.errors import UserError


class ShardedState(TrainingState):
    """The same state, of which each process holds a part."""

    def save(self, folder: Path, keep: int, best: str | None = None) -> None:
        """As of `TrainingState`; processes have the disk in common."""
        self.writer.wait()
        path, main = folder / checkpoint.name(self.step), world.own_rank() == 0
        if world.from_main(lambda: str(checkpoint.verify(path) is None)) == str(True):
            return
        tensors = {f"{group}/{name}": tensor for group, own in self._gather().items() for name, tensor in own.items()}
        if bad := world.first_of_all(next((name for name, tensor in tensors.items() if not _finite(tensor)), "")):
            raise UserError(f"{bad} became non-finite before step {self.step} and is not saved: {LOWER_RATE}")
        if main:
            self._make_room(folder, best)
        with ExitStack() as opened:
            stage = opened.enter_context(checkpoint.staged(path)) if main else None
            there = Path(world.from_main(lambda: str(stage)))
            written = self._written(there, tensors)
            unfinished, state = opened.pop_all(), json.dumps(self._numbers(), indent=1)

        def finish() -> None:
            with unfinished:
                written()
                if main:
                    (there / "state.json").write_text(state, encoding="utf-8")
            if main:
                checkpoint.prune(folder, keep, spare=best)

        self.writer.start(finish) if self.asynchronous else finish()

    def _written(self, stage: Path, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """What writes this process's part; where this is asynchronous, what waits for it, from copies."""
        if self.asynchronous:
            return sharded_files.write_copies(stage, tensors, world.group_of("checkpoints"))
        return partial(sharded_files.write, stage, tensors, world.group())

    def restore(self, found: Path, content: checkpoint.Content, allow_changed: Collection[str] = ()) -> list[str]:
        """As of `TrainingState`. `content` is whole, or has no tensors where the checkpoint is sharded."""
        groups, state = content
        return super().restore(found, (self._own_part(found, groups), state), allow_changed)

    def take_weights(self, found: Path) -> None:
        groups, fault = dict[str, dict[str, Tensor]](), ""
        try:
            groups, _ = checkpoint.load(found, whole=False)
        except UserError as error:
            fault = str(error)
        if fault := world.first_of_all(fault):  # all processes take them, or none
            raise UserError(fault)
        self._restore_weights(self._own_part(found, groups), found)

    def _make_room(self, folder: Path, best: str | None) -> None:
        """Delete what was superseded if this checkpoint needs its place."""
        try:
            self.check_free_space(folder, keep=0)
        except DiskFull:
            checkpoint.prune(folder, 2, superseded=True, spare=best)

    def _own_part(self, found: Path, groups: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """This process's part of a checkpoint, as the parameters are distributed; whole where it does not fit."""
        layouts = self._layouts()
        if not sharded_files.is_sharded(found):
            return {
                group: {name: _distributed(value, layouts.get(f"{group}/{name}")) for name, value in tensors.items()}
                for group, tensors in groups.items()
            }
        tensors: dict[str, Tensor] = {}
        for name, shape in sharded_files.shapes(found).items():
            like = layouts.get(name)
            tensors[name] = torch.empty(shape) if like is None or like.shape != shape else torch.empty_like(like)
        sharded_files.read_into(found, tensors)
        return sharded_files.by_group(tensors)

    def _layouts(self) -> dict[str, Tensor]:
        """A tensor like each of a checkpoint, by the name that it has there; counts of steps are whole."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            found |= {f"model/{name}": parameter, f"optimizer/step/{name}": torch.zeros(())}
            found |= {f"optimizer/{key}/{name}": parameter for key in ("exp_avg", "exp_avg_sq")}
        return found | {f"ema/{name}": parameter for name, parameter in self.model.named_parameters()}


def _distributed(value: Tensor, like: Tensor | None) -> Tensor:
    """This process's part of a whole tensor, if a tensor like it is distributed."""
    if not isinstance(like, DTensor) or like.shape != value.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _finite(tensor: Tensor) -> bool:
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return bool(torch.isfinite(own).all())
