"""Several processes, each on a disk of its own: they train together, and whatever ends one ends all, with a line."""

import json
import os
import signal
import time
from functools import partial

import pytest
import torch
from forked import until, world
from tiny_trainings import losses, settings_of

from ldm.cli.train_stage import train_stage
from ldm.config.loading import to_yaml
from ldm.training.data_order import Batches
from ldm.training.distributed import start_world
from ldm.training.world import agree, together
from ldm.utils import checkpoint_files as checkpoint

SECONDS = 15.0  # within which everybody ends
SLACK = 45.0  # for a busy machine, on which a thread waits for its turn


def rank() -> int:
    return int(os.environ["RANK"])


def train_apart(project, folder, *words: str, **train) -> None:
    """One stage, by its command, in a folder that no other process has."""
    torch.set_num_threads(1)
    here = folder / f"node{rank()}"
    here.mkdir(parents=True, exist_ok=True)
    settings = settings_of("clip", project, here / "run", **train)
    data = settings.data.model_copy(update={"cache_dir": here / "cache"})
    (here / "config.yaml").write_text(to_yaml(settings.model_copy(update={"output_dir": None, "data": data})))
    os.chdir(here)
    train_stage("clip", ["config.yaml", "--output-dir", str(here / "run"), *words])


def runs(folder):
    return [folder / f"node{rank}" / "run" for rank in range(2)]


def ended(children, seconds=SLACK) -> list[int]:
    began = time.monotonic()
    codes = [child.wait() for child in children]
    assert time.monotonic() - began < seconds, [child.said() for child in children]
    return codes


def errors_in(child) -> list[str]:
    assert "Traceback" not in child.said(), child.said()
    return [line for line in child.said().splitlines() if line.startswith("error: ")]


def test_two_nodes_without_a_shared_disk_train_and_resume_together(project, tmp_path, survived):
    start = partial(train_apart, project, tmp_path)
    children = world(partial(start, num_steps=6), tmp_path / "said", 2, nodes=True)
    assert ended(children) == [0, 0], [child.said() for child in children]
    one, two = runs(tmp_path)
    for name in ("tokenizer", "final", "checkpoints/step-00000006"):
        ours, theirs = (json.loads((run / name / "manifest.json").read_text())["files"] for run in (one, two))
        ours.pop("state.json", None), theirs.pop("state.json", None)  # it has the folder's name
        assert ours == theirs and ours
    assert list(losses(one)) == [1, 2, 3, 4, 5, 6] and not (two / "log.jsonl").exists()

    children = world(partial(start, num_steps=8), tmp_path / "again", 2, nodes=True)
    assert ended(children) == [0, 0] and list(losses(one)) == [1, 2, 3, 4, 5, 6, 7, 8]

    checkpoint.delete([two / "checkpoints" / checkpoint.name(8)])
    children = world(partial(start, num_steps=10), tmp_path / "missing", 2, nodes=True)
    assert ended(children) == [2, 2]
    for child in children:
        (line,) = errors_in(child)
        assert "the checkpoint is step-00000006 (" in line and "for process 2 of 2" in line
        assert "step-00000008 (" in line and "shared --output-dir" in line
    survived("checkpoint missing on one node", 1)


def hang(monkey_step: int, mark):
    """Have process 2 stay in the loading of a step's data."""
    plain = Batches.__getitem__

    def stuck(self, rows):
        if rows.step == monkey_step and rank() == 1:
            mark.touch()
            while True:
                time.sleep(0.01)
        return plain(self, rows)

    Batches.__getitem__ = stuck


def train_stuck(project, folder, mark, **train) -> None:
    hang(4, mark)
    train_apart(project, folder, **train)


def test_a_signal_ends_who_waits_for_one_that_hangs(project, tmp_path, survived):
    mark = tmp_path / "mark"
    children = world(partial(train_stuck, project, tmp_path, mark), tmp_path / "said", 2, nodes=True)
    until(mark.exists)
    time.sleep(1)
    children[0].kill(signal.SIGTERM)  # the other hears of it from this one
    assert ended(children) == [143, 143]
    for child in children:
        (line,) = errors_in(child)
        assert "SIGTERM" in line and "process 2 on" in line and "did not get past step 5, loading data" in line
    assert all(checkpoint.newest(run / "checkpoints").name == checkpoint.name(3) for run in runs(tmp_path))
    survived("SIGTERM in a collective", 1)


def test_a_process_that_hangs_is_named(project, tmp_path, survived):
    mark = tmp_path / "mark"
    work = partial(train_stuck, project, tmp_path, mark, hang_minutes=0.05)
    children = world(work, tmp_path / "said", 2, nodes=True)
    assert ended(children) == [2, 2]
    for child in children:
        (line,) = errors_in(child)
        assert "train.hang_minutes 0.05: process 2 on" in line and "did not get past step 5, loading data" in line
    survived("hung process", 1)


@pytest.mark.parametrize(("number", "victim"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 0), (signal.SIGSTOP, 1)])
def test_a_process_that_is_gone_ends_the_others(number, victim, project, tmp_path, survived):
    run = runs(tmp_path)[0]
    work = partial(train_apart, project, tmp_path, num_steps=100_000, save_every=50_000)
    children = world(work, tmp_path / "said", 2, nodes=True)
    until(lambda: len(losses(run)) > 4)
    time.sleep(3)  # they have heard of each other
    children[victim].kill(number)
    other = children[1 - victim]
    assert ended([other]) == [2]
    (line,) = errors_in(other)
    assert ("lost the others" in line) or ("no sign of life" in line and f"process {victim + 1} of 2" in line)
    survived(f"{number.name} of one process", 1)


def fail_in_one(project, folder) -> None:
    if rank() == 1:
        (folder / "node1").mkdir(parents=True)
        (folder / "node1" / "run").write_text("a file")
    train_apart(project, folder)


def test_an_error_in_one_process_is_said_by_all(project, tmp_path):
    children = world(partial(fail_in_one, project, tmp_path), tmp_path / "said", 2, nodes=True)
    assert ended(children) == [2, 2]
    assert "cannot write to" in errors_in(children[1])[0]
    (line,) = errors_in(children[0])
    assert "process 2 of 2 on" in line and "cannot write to" in line


def differ(folder) -> None:
    start_world()
    with together():
        agree({"seed": "0", "data": "abc"}, "same files")
        agree({"seed": "0", "data": f"abc{rank()}"}, "give them the same files")


def test_whoever_differs_is_named(tmp_path):
    children = world(partial(differ, tmp_path), tmp_path / "said", 2)
    assert ended(children) == [2, 2]
    text = "data is abc1 for process 2 of 2 on"
    assert all(
        text in errors_in(child)[0] and "abc0 for the main process: give them" in child.said() for child in children
    )
    agree({"seed": "0"}, "")  # a world of one
