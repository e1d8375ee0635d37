"""No number that is none ever moves a weight or reaches a checkpoint; memory that runs out is told of in one line."""

import itertools
import math
import os
from functools import partial

import pytest
import torch
from forked import Child, world
from safetensors.torch import load_file
from tiny_trainings import losses, settings_of, task_of, train

from ldm.training.distributed import start_world
from ldm.training.trainer import Trainer
from ldm.utils import checkpoint_files as checkpoint

BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def train_poisoned(part, project, run, where, value, steps, rank):
    """Put a value that is no number into the loss, or into one gradient, of one process."""
    start_world()
    settings = settings_of(part, project, run)
    task = task_of(part, settings, run)
    trainer = Trainer(task, settings, run)
    ours = os.environ.get("RANK", "0") == str(rank)
    forward = task.module.forward

    def poisoned(*args, **values):
        loss, metrics = forward(*args, **values)
        return loss * (value if where == "loss" and ours and trainer.step in steps else 1), metrics

    task.module.forward = poisoned
    if where == "gradient":
        parameter = next(p for p in task.module.parameters() if p.requires_grad)
        parameter.register_hook(
            lambda g: g.index_put((torch.tensor(0),), torch.tensor(value)) if ours and trainer.step in steps else None
        )
    trainer.fit()


def pytest_generate_tests(metafunc):
    if "poison" in metafunc.fixturenames:
        every = list(itertools.product(("loss", "gradient"), BAD, (1, 4), ((1, 0), (2, 1))))
        quick = [("loss", "nan", 4, (2, 1)), ("gradient", "inf", 1, (1, 0))]
        metafunc.parametrize("poison", every if metafunc.config.getoption("--all-faults") else quick, ids=str)


def test_a_bad_step_is_skipped_by_all_processes(poison, project, tmp_path, survived):
    where, name, step, (size, rank) = poison
    work = partial(train_poisoned, "ldm", project, tmp_path / "run", where, BAD[name], {step}, rank)
    children = world(work, tmp_path / "said", size)
    assert [child.wait() for child in children] == [0] * size, children[0].said()
    assert f"the gradient of step {step + 1} is not finite (training items" in children[0].said()
    assert children[0].said().count("is not finite") == 1
    for file in (tmp_path / "run").rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values()), file
    assert losses(tmp_path / "run")[step + 1] is None
    survived(f"{name} in a {where}", 1)


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_that_stays_bad_stops_everywhere(size, project, tmp_path, survived):
    work = partial(train_poisoned, "ldm", project, tmp_path / "run", "loss", math.nan, set(range(4, 9)), size - 1)
    children = world(work, tmp_path / "said", size)
    assert [child.wait() for child in children] == [2] * size
    assert "3 in a row: lower optim.lr" in children[0].said() and "Traceback" not in children[0].said()
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").name == checkpoint.name(6)
    survived("training that stays bad", 1)


def test_a_learning_rate_of_1e20_spoils_no_checkpoint(project, tmp_path, survived):
    def work():
        settings = settings_of("ldm", project, tmp_path / "run", save_every=1)
        optim = settings.optim.model_copy(update={"lr": 1e20, "warmup_steps": 0})
        settings = settings.model_copy(update={"optim": optim})
        Trainer(task_of("ldm", settings, tmp_path / "run"), settings, tmp_path / "run").fit()

    child = Child(work, tmp_path / "said")
    assert child.wait() == 2 and "lower optim.lr" in child.said(), child.said()
    for file in (tmp_path / "run").rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values()), file
    survived("learning rate of 1e20", 1)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_says_what_to_lower(error, project, tmp_path, survived):
    def work():
        settings = settings_of("ldm", project, tmp_path / "run", gradient_accumulation_steps=2)
        task = task_of("ldm", settings, tmp_path / "run")
        trainer = Trainer(task, settings, tmp_path / "run")
        forward = task.module.forward

        def short(*args, **values):
            if trainer.step == 4:
                raise error
            return forward(*args, **values)

        task.module.forward = short
        trainer.fit()

    child = Child(work, tmp_path / "said")
    assert child.wait() == 2
    last = child.said().strip().splitlines()[-1]
    assert last.startswith("error: out of memory in step 5 with 2 items at once (train.batch_size 4)")
    assert "train.gradient_accumulation_steps (now 2)" in last
    if isinstance(error, MemoryError):  # what is left behind is the same for all three
        work = partial(train, "ldm", project, tmp_path / "run", gradient_accumulation_steps=2)
        again = Child(work, tmp_path / "again")
        assert again.wait() == 0 and "step-00000003" in again.said()
    survived("memory that runs out", 1)
