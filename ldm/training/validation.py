"""Which checkpoint is exported and when a training ends early, by what its checkpoints reached on held-out data.

A validation is a dictionary {"step", "loss"}, with "error", the standard error of a loss that is a mere count, and with
"copies", the fraction of generated images that are near copies of training images, where images can be compared. They
are part of the training state, so a resumed run decides alike.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.config.settings import RunSettings, TrainOptions
from ldm.data import is_own
from ldm.utils import checkpoint_files as checkpoint

Validation = dict[str, float]

VALUES = ("loss", "error", "copies")  # beside the step; all but the loss may be missing

MOST = 10  # validations in a training, about: each takes a moment
LEAST = 3  # of them without improvement before a training ends


def wanted(settings: RunSettings) -> bool:
    """Whether checkpoints are to be compared: as `train.keep_best` says, else for images of one's own."""
    chosen = settings.train.keep_best
    return not is_own(settings.data.source) if chosen is None else chosen


def due(step: int, done: list[Validation], settings: RunSettings) -> bool:
    """Whether the checkpoint of this step is validated."""
    train, last = settings.train, done[-1]["step"] if done else 0
    often = step % train.save_every == 0 and MOST * (step - last) >= train.num_steps
    return often or step == last_step(done, settings)


def best_of(done: list[Validation], train: TrainOptions) -> Validation | None:
    """The latest validation within the error of the lowest loss; where copies are known, the latest with few of them.

    The loss on held-out images rises long before a U-Net copies, while its images still become better.
    """
    if not done:
        return None
    original = [one for one in done if one.get("copies", 0) <= train.max_copies] or done
    if "copies" in original[-1]:
        return original[-1]
    lowest = min(reversed(original), key=lambda one: (math.isnan(one["loss"]), one["loss"]))
    equal = (one for one in reversed(original) if one["loss"] <= lowest["loss"] + lowest.get("error", 0))
    return next(equal, lowest)


def last_step(done: list[Validation], settings: RunSettings) -> int:
    """The step that a training ends with: earlier than planned once its loss has not fallen for its patience.

    Where the learning rate was to fall at the end (schedule wsd), its fall begins then, and takes the fraction of all
    steps that was planned: without it, the weights would be worse than they need to be.
    """
    train, optim = settings.train, settings.optim
    last = done[-1]["step"] if done else 0
    if train.keep_best is not False and done and done[-1].get("copies", 0) > train.max_copies:
        return int(last)
    stable = 1 - optim.decay_fraction if optim.schedule == "wsd" else 1.0
    stalled = next((one for one in _stalled(done, train) if one <= stable * train.num_steps), None)
    return train.num_steps if stalled is None else min(train.num_steps, math.ceil(stalled / stable))


def _stalled(done: list[Validation], train: TrainOptions) -> Iterator[int]:
    """The steps of validations at which the loss had not fallen for the patience."""
    if train.keep_best is False or not train.patience:
        return
    for count in range(1, len(done) + 1):
        known = done[:count]
        best, last = best_of(known, train), known[-1]["step"]
        assert best is not None
        since = [one for one in known if one["step"] > best["step"]]
        if len(since) >= LEAST and last - best["step"] >= train.patience * train.num_steps:
            yield int(last)


def reason_to_stop(done: list[Validation], settings: RunSettings) -> str | None:
    """Why a training ends before its last step, after these validations; None if it does not."""
    train = settings.train
    if not done or done[-1]["step"] < last_step(done, settings) or train.keep_best is False:
        return None
    if (copies := done[-1].get("copies", 0)) > train.max_copies:
        return (
            f"{copies:.0%} of the images that it generates are near copies of training images "
            f"(train.max_copies {train.max_copies:g})"
        )
    if done[-1]["step"] >= train.num_steps:
        return None
    stalled = next(_stalled(done, train))
    known = [one for one in done if one["step"] <= stalled]
    best = best_of(known, train)
    assert best is not None
    return (
        f"at step {stalled} the validation loss had not fallen since step {best['step']}: {best['loss']:.4g} then, "
        f"{known[-1]['loss']:.4g} later (train.patience {train.patience:g})"
    )


def summary(done: list[Validation], settings: RunSettings) -> str | None:
    """One or two sentences on the weights that a run exports; None where no checkpoints were compared."""
    train = settings.train
    best = best_of(done, train)
    if best is None or train.keep_best is False:
        return None
    text = f"The exported weights are those of step {best['step']}, with a validation loss of {best['loss']:.4g}"
    if best is not done[-1]:
        text += f" (step {done[-1]['step']}: {done[-1]['loss']:.4g})"
    reason = reason_to_stop(done, settings)
    ended = f" Training ended at step {done[-1]['step']} of {train.num_steps}: {reason}." if reason else ""
    return f"{text}, the best of {len(done)} checkpoints.{ended}"


def validations(found: Path) -> list[Validation]:
    """Those recorded in a checkpoint."""
    return state_of(found).get("validations", [])


def state_of(found: Path) -> dict[str, Any]:
    """What a checkpoint holds beside its tensors; empty if it cannot be read."""
    try:
        return json.loads((found / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def best_name(newest: Path) -> str | None:
    """The name of the best checkpoint, by what the newest one records; None if none were compared."""
    state = state_of(newest)
    train = TrainOptions(**state.get("settings", {}).get("train", {}))
    best = None if train.keep_best is False else best_of(state.get("validations", []), train)
    return checkpoint.name(int(best["step"])) if best else None


def exported_from(newest: Path) -> Path:
    """The checkpoint whose weights a finished run exports: the best one, if it is still there, else the newest."""
    best = newest.with_name(best_name(newest) or newest.name)
    return best if best.is_dir() else newest
