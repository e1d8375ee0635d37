"""kill -9 at any instant: a run goes on unaided, from a whole checkpoint at most one interval old, to the same end."""

import os
import random
import signal
import time
from functools import partial

import pytest
import torch
from forked import world
from stepped import killed_before_call
from tiny_trainings import PARTS, WAYS, assert_same_run, losses, marks, train

from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.atomic_files import remove_stale

EVERY, STEPS = 2, 10


def leftovers(run):
    return [path.name for path in run.rglob(".*") if path.name.endswith((".tmp", ".old"))]


def killed(children) -> int:
    """Kill all of them; 1 if that was before one had ended by itself."""
    for child in children:
        child.kill(signal.SIGKILL)
    codes = [child.wait() for child in children]
    return int(-signal.SIGKILL in codes)


def killed_while_saving(children, run, rng) -> bool:
    """Kill as soon as a checkpoint is being written; True if it was left half done."""
    folder, until = run / "checkpoints", time.monotonic() + 600
    seen = {path.name for path in folder.glob(".step-*")}
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while time.monotonic() < until and not os.waitid(os.P_PID, children[0].pid, ended):
        if any(path.name not in seen for path in folder.glob(".step-*.tmp")):
            time.sleep(rng.random() * 0.004)
            break
    killed(children)
    return bool(leftovers(run))


def pytest_generate_tests(metafunc):
    if "way" in metafunc.fixturenames:
        plain, whole = [(part, "plain") for part in PARTS], metafunc.config.getoption("--all-faults")
        more = [("ldm", way) for way in WAYS if way != "plain"] + [("clip", "streamed"), ("vae", "streamed")]
        chosen = plain + (more if whole else [("ldm", "asynchronous")])
        metafunc.parametrize("part, way", [pytest.param(*each, marks=marks(each[1])) for each in chosen])


def test_a_killed_training_goes_on_unaided_to_the_same_end(part, way, project, undisturbed, tmp_path, trials, survived):
    size, environment, options = WAYS[way]
    options = {"save_every": EVERY, "num_steps": STEPS} | options
    began = time.monotonic()
    whole = undisturbed(part, way, save_every=EVERY, num_steps=STEPS)
    lasts = time.monotonic() - began
    rng, run, number = random.Random(part), tmp_path / "0", 0
    kills, torn, wanted = 0, 0, trials(2, 67 if way == "plain" else 10)
    behind = EVERY * (2 if "asynchronous" in way else 1)  # the last one may still have been at work
    more = lambda: kills < wanted or (not torn and kills < max(40, 10 * wanted))  # noqa: E731  one in two falls into a saving
    while more() or not (run / "final").exists():
        work = partial(train, part, project, run, **options)
        children = world(work, tmp_path / "output", size, environment=environment)
        if not more():
            assert [child.wait() for child in children] == [0] * size, children[0].said()
        elif kills % 2:
            torn += killed_while_saving(children, run, rng)
            kills += 1
        else:
            time.sleep(rng.random() * lasts)
            kills += killed(children)
        newest = checkpoint.newest(run / "checkpoints")
        done = int(newest.name.removeprefix("step-")) if newest else 0
        assert done >= max(losses(run), default=0) - behind
        if (run / "final").exists() and checkpoint.verify(run / "final") is None:
            assert_same_run(whole, run)
            assert leftovers(run / "checkpoints") == [] or more()
            if more():
                number += 1
                run = tmp_path / str(number)
    assert torn, "no kill left a half-written checkpoint"
    survived(f"SIGKILL in train_{part}, {way}", kills)


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
