"""The state of a training that checkpoints hold: weights, optimizer moments, EMA and counters.

Everything random in a step is a function of (seed, step), so there are no generators to keep.
"""

import copy
import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.training import resume_rules as resume
from ldm.training.ema import EMA
from ldm.training.optimizer import kept_moments, restore_moments
from ldm.training.run_directory import replace_text
from ldm.training.validation import Validation
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.atomic_files import DiskFull, require_free_space
from ldm.utils.background import Background
from ldm.utils.errors import UserError
from ldm.utils.sharded_files import SHARDS

MAX_SKIPPED = 3  # steps in a row whose gradients are not finite
MAX_SKIPPED_FP16 = 24  # the scale of fp16 losses begins too high on purpose, and is halved each time
LOWER_RATE = "lower optim.lr, then --resume auto continues from the last checkpoint"


@dataclass
class TrainingState:
    """The state and what it came from.

    Attributes:
        module: everything trainable is in it; `model`: the part that the EMA `ema` follows.
        origin: {"settings": ..., "identity": ...} as `ldm.training.resume_rules.compare` takes it.
        scaler: of fp16 losses, or None.
        asynchronous: whether checkpoints are written by `writer`, from copies, while the training continues.
        step: steps done; `skipped`: how many of them, the last in a row, changed nothing.
        validations: see `ldm.training.validation`.
    """

    module: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    origin: dict[str, Any]
    scaler: Any = None
    asynchronous: bool = False
    step: int = 0
    skipped: int = 0
    validations: list[Validation] = field(default_factory=list)
    writer: Background = field(default_factory=Background)

    def count_step(self, finite: bool, items: str) -> str | None:
        """Count a step done; a warning if its gradients were not finite, so that it changed nothing.

        `items`: what it was trained on, for the message. Raises: UserError after too many such steps in a row.
        """
        self.step += 1
        self.skipped = 0 if finite else self.skipped + 1
        if finite:
            return None
        text = f"the gradient of step {self.step} is not finite (training items {items})"
        if self.skipped == (MAX_SKIPPED if self.scaler is None else MAX_SKIPPED_FP16):
            raise UserError(f"{text}, nor were those before it, {self.skipped} in a row: {LOWER_RATE}")
        return f"{text}: step skipped"

    def save(self, folder: Path, keep: int, best: str | None = None) -> None:
        """Write a checkpoint into `folder` unless it is there, and delete all but the newest `keep` and the `best`.

        Where this is asynchronous, once the checkpoint before it is written; it is there when `writer` is done.
        Raises: UserError if the disk is full, or if a number in it is not finite: then nothing is written.
        """
        self.writer.wait()
        path = folder / checkpoint.name(self.step)
        if checkpoint.verify(path) is None:
            return
        groups = self._gather()
        for group, tensors in groups.items():
            if bad := next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None):
                raise UserError(
                    f"{group} {bad} became non-finite before step {self.step} and is not saved: {LOWER_RATE}"
                )
        if self.asynchronous:
            copies = {group: {name: _copied(tensor) for name, tensor in own.items()} for group, own in groups.items()}
            self.writer.start(partial(_write, path, copies, copy.deepcopy(self._numbers()), keep, best))
        else:
            _write(path, groups, self._numbers(), keep, best)

    def restore(self, found: Path, content: checkpoint.Content, allow_changed: Collection[str] = ()) -> list[str]:
        """Restore a checkpoint that was read; returns lines for the log on settings that changed.

        Raises: UserError if it is of another training.
        """
        groups, state = content
        if not {"model", "optimizer"} <= groups.keys():
            raise UserError(f"{found} is no checkpoint of a training: it has no weights or no optimizer state")
        notes = resume.compare(state, self.origin, allow_changed, str(found), self._fits(groups["model"]))
        self._restore_weights(groups, found)
        self._restore_moments(groups)
        if self.scaler is not None and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.ema.optimization_step = state["ema_steps"]
        self.step, self.skipped = state["step"], state.get("skipped", 0)
        self.validations = state.get("validations", [])
        return notes

    def take_weights(self, found: Path) -> None:
        """The weights and their EMA of a checkpoint of this run, and nothing else. Raises: UserError if damaged."""
        groups, _ = checkpoint.load(found)
        self._restore_weights(groups, found)

    def check_free_space(self, folder: Path, keep: int) -> None:
        """Raises: UserError, with the bytes needed and free, where the disk cannot hold the checkpoints to come."""
        weights = sum(p.numel() * p.element_size() for p in _trainable(self.module).values())
        each = 3 * weights + sum(p.numel() * p.element_size() for p in self.ema.shadow_params)
        count = max(1, keep + 1 - len(checkpoint.saved(folder)))  # the oldest is deleted after the newest is written
        require_free_space(folder, each * count, f"{count} checkpoints", "make room or choose another --output-dir")

    def _numbers(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors."""
        scale = None if self.scaler is None else self.scaler.state_dict()
        state = {"step": self.step, "skipped": self.skipped, "ema_steps": self.ema.optimization_step, "scaler": scale}
        return state | {"validations": self.validations} | self.origin

    def _gather(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by group and name; frozen components belong to other runs."""
        self.ema.settle()
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        state = kept_moments(self.optimizer)
        groups = {
            "model": _trainable(self.module),
            "optimizer": {f"{key}/{names[p]}": value for p, moments in state for key, value in moments.items()},
        }
        if self.ema.shadow_params:
            groups["ema"] = dict(zip(_names(self.model), self.ema.shadow_params, strict=True))
        return groups

    def _fits(self, tensors: dict[str, Tensor]) -> bool:
        """Whether weights are of this model: the same names and shapes."""
        own = {name: value.shape for name, value in _trainable(self.module).items()}
        return own == {name: value.shape for name, value in tensors.items()}

    def _restore_weights(self, groups: dict[str, dict[str, Tensor]], source: Path) -> None:
        own, tensors = _trainable(self.module), groups["model"]
        if not self._fits(tensors):
            raise UserError(
                f"checkpoint {source} belongs to another model; restore its settings, or use another --output-dir"
            )
        self.ema.settle()
        _fill(list(own.values()), [tensors[name] for name in own])
        if self.ema.shadow_params:  # an EMA that was not kept before begins at the weights
            averages = groups.get("ema") or dict(self.model.named_parameters())
            _fill(self.ema.shadow_params, [averages[name] for name in _names(self.model)])
            fixed = {name: value for name, value in self.model.named_parameters() if not value.requires_grad}
            _fill(list(fixed.values()), [averages[name] for name in fixed])  # a linear encoder, as it was computed

    def _restore_moments(self, groups: dict[str, dict[str, Tensor]]) -> None:
        parameters = dict(self.module.named_parameters())
        moments: dict[str, dict[str, Tensor]] = {}
        for full, value in groups["optimizer"].items():
            key, name = full.split("/", 1)
            moments.setdefault(name, {})[key] = value
        for name, found in moments.items():
            restore_moments(self.optimizer, parameters[name], found)


def _write(path: Path, groups: dict[str, dict[str, Tensor]], state: dict, keep: int, best: str | None) -> None:
    """Write a checkpoint, and delete all but the newest `keep` and the `best`."""
    try:
        checkpoint.save(path, groups, state)
    except DiskFull:  # superseded checkpoints can be deleted
        checkpoint.prune(path.parent, 2, superseded=True, spare=best)
        checkpoint.save(path, groups, state)
    checkpoint.prune(path.parent, keep, spare=best)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def find(run: Path, wanted: str, whole: bool = True) -> tuple[Path, checkpoint.Content] | None:
    """The checkpoint of a run to resume from and its content, None for a fresh start.

    Args:
        wanted: 'auto' (the newest valid one, if there is any), 'never', or a checkpoint's folder.
        whole: see `ldm.utils.checkpoint_files.load`.
    Raises: UserError where a fresh start would pass over checkpoints, or if the one that is named is damaged.
    """
    folder = run / "checkpoints"
    if wanted not in ("auto", "never"):
        return Path(wanted), checkpoint.load(Path(wanted), whole)
    found = checkpoint.load_newest(folder, whole) if wanted == "auto" else None
    others = checkpoint.saved(folder)
    if found is None and others:
        reason = "" if wanted == "never" else f", none valid ({others[-1].name}: {checkpoint.verify(others[-1])})"
        raise UserError(f"{run} already holds checkpoints{reason}; start another run with another --output-dir")
    return found


def weights_of(found: tuple[Path, checkpoint.Content] | None) -> dict[str, str]:
    """What processes compare of the checkpoint that each found: its name and the start of its weights' sha256."""
    if found is None:
        return {"the checkpoint": "none"}
    manifest = json.loads((found[0] / checkpoint.MANIFEST).read_text(encoding="utf-8"))
    files = manifest["files"]
    weights = files.get("model.safetensors") or next(files[name] for name in sorted(files) if name.startswith(SHARDS))
    return {"the checkpoint": f"{found[0].name} ({weights['sha256'][:12]})"}


def rewind(run: Path, step: int) -> list[str]:
    """Set aside checkpoints and log lines beyond `step`: damaged, or superseded. Returns lines for the log."""
    notes = []
    for path in checkpoint.saved(run / "checkpoints"):
        if path.name > checkpoint.name(step):
            aside = checkpoint.supersede(path)
            reason = checkpoint.verify(aside) or "an earlier one was asked for"
            notes.append(f"{path} set aside as {aside.name}: {reason}")
    log_file = run / "log.jsonl"
    if log_file.is_file():
        lines = [line for line in log_file.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        replace_text(log_file, "".join(f"{line}\n" for line in lines))
    return notes


def _step_of(line: str) -> float:
    """The step of a line of log.jsonl; infinite for a line that a crash cut off."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _trainable(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def _fill(targets: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)
