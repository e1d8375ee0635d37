"""kill -9 at any instant: a run goes on unaided, from a whole checkpoint at most one interval old, to the same end."""

import os
import random
import signal
import time
from functools import partial

import pytest
import torch
from forked import Child
from stepped import killed_before_call
from tiny_trainings import PARTS, assert_same_run, losses, train

from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.atomic_files import remove_stale

EVERY, STEPS = 2, 10


def leftovers(run):
    return [path.name for path in run.rglob(".*") if path.name.endswith((".tmp", ".old"))]


def killed_while_saving(child, run, rng) -> bool:
    """Kill as soon as a checkpoint is being written; True if it was left half done."""
    folder, until = run / "checkpoints", time.monotonic() + 600
    seen = {path.name for path in folder.glob(".step-*")}
    while time.monotonic() < until and not os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if any(path.name not in seen for path in folder.glob(".step-*.tmp")):
            time.sleep(rng.random() * 0.004)
            break
    child.kill(signal.SIGKILL)
    child.wait()
    return bool(leftovers(run))


@pytest.mark.parametrize("part", PARTS)
def test_a_killed_training_goes_on_unaided_to_the_same_end(part, project, undisturbed, tmp_path, trials, survived):
    options = {"save_every": EVERY, "num_steps": STEPS}
    began = time.monotonic()
    whole = undisturbed(part, **options)
    lasts = time.monotonic() - began
    rng, run, number = random.Random(part), tmp_path / "0", 0
    kills, torn, wanted = 0, 0, trials(2, 67)
    more = lambda: kills < wanted or (not torn and kills < max(40, 10 * wanted))  # noqa: E731  one in two falls into a saving
    while more() or not (run / "final").exists():
        child = Child(partial(train, part, project, run, **options), tmp_path / "output")
        if not more():
            assert child.wait() == 0, child.said()
        elif kills % 2:
            torn += killed_while_saving(child, run, rng)
            kills += 1
        else:
            time.sleep(rng.random() * lasts)
            child.kill(signal.SIGKILL)
            kills += child.wait() == -signal.SIGKILL
        newest = checkpoint.newest(run / "checkpoints")
        done = int(newest.name.removeprefix("step-")) if newest else 0
        assert done >= max(losses(run), default=0) - EVERY
        if (run / "final").exists() and checkpoint.verify(run / "final") is None:
            assert_same_run(whole, run)
            assert leftovers(run / "checkpoints") == [] or more()
            if more():
                number += 1
                run = tmp_path / str(number)
    assert torn, "no kill left a half-written checkpoint"
    survived(f"SIGKILL in train_{part}", kills)


def tensors(step: int):
    return {name: {"w": torch.full((64,), float(step))} for name in ("model", "optimizer")}


def save(folder, step: int) -> None:
    checkpoint.save(folder / checkpoint.name(step), tensors(step), {"step": step})
    checkpoint.prune(folder, 2)


def replace_final(folder, step: int) -> None:
    with checkpoint.staged(folder / "final") as stage:
        (stage / "model.txt").write_text(str(step))


def test_killed_before_each_system_call_of_a_saving(tmp_path, trials, survived):
    """A checkpoint there was stays whole, or the new one is; the next saving goes through and clears up."""
    number, fired, seen = 1, 0, set()
    while True:
        folder = tmp_path / str(number)
        save(folder, 1), save(folder, 2)
        try:
            if not killed_before_call(partial(save, folder, 3), number):
                break
        except OSError as error:
            pytest.skip(str(error))
        newest = checkpoint.newest(folder).name
        seen.add(newest)
        assert newest in (checkpoint.name(2), checkpoint.name(3))
        save(folder, 4)
        assert checkpoint.newest(folder).name == checkpoint.name(4) and leftovers(folder) == []
        fired, number = fired + 1, number + trials(13, 1)
    assert seen == {checkpoint.name(2), checkpoint.name(3)} and fired >= trials(10, 100)
    survived("SIGKILL before a system call of a saving", fired)


def test_killed_before_each_system_call_of_a_replacement(tmp_path, trials, survived):
    """Of a finished model that is written anew, the old or the new one is there after the next look."""
    number, fired, seen = 1, 0, set()
    while True:
        folder = tmp_path / str(number)
        replace_final(folder, 1)
        try:
            if not killed_before_call(partial(replace_final, folder, 2), number):
                break
        except OSError as error:
            pytest.skip(str(error))
        remove_stale(folder)
        assert checkpoint.verify(folder / "final") is None and leftovers(folder) == []
        seen.add((folder / "final" / "model.txt").read_text())
        fired, number = fired + 1, number + trials(13, 1)
    assert seen == {"1", "2"} and fired >= trials(5, 50)
    survived("SIGKILL before a system call of a replacement", fired)
