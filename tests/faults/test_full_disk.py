"""A disk that fills up, or a file that may not grow: what was saved stays, nothing half done looks whole."""

import os
import random
import resource
import shutil
import signal
import subprocess
from functools import partial

import pytest
import torch
from forked import Child
from tiny_trainings import content, settings_of, task_of, train

from ldm.training.ema import EMA
from ldm.training.state import TrainingState
from ldm.training.trainer import Trainer
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.atomic_files import DiskFull, readable_io_errors
from ldm.utils.errors import UserError


def tensors(step: int):
    return {name: {"w": torch.full((20_000,), float(step))} for name in ("model", "ema", "optimizer")}  # 80 kB each


def save(folder, step: int) -> None:
    checkpoint.save(folder / checkpoint.name(step), tensors(step), {"step": step})


def save_with_limit(folder, step: int, limit: int) -> None:
    """No file may grow beyond `limit` bytes: as a full disk, for whoever may not mount one."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    save(folder, step)


def assert_unharmed(folder, child) -> None:
    assert child.wait() == 2, child.said()
    said = child.said().strip()
    assert said.startswith(f"error: cannot write {folder / checkpoint.name(2)}") and "\n" not in said
    assert "make room" in said
    assert checkpoint.newest(folder).name == checkpoint.name(1)
    assert sorted(path.name for path in folder.iterdir()) == [checkpoint.name(1)]


def test_a_file_that_may_not_grow(tmp_path, trials, survived):
    save(tmp_path, 1)
    largest = max(file.stat().st_size for file in (tmp_path / checkpoint.name(1)).iterdir())
    rng, fired = random.Random(0), trials(5, 25)
    for _ in range(fired):
        child = Child(partial(save_with_limit, tmp_path, 2, rng.randrange(largest)), tmp_path.parent / "said")
        assert_unharmed(tmp_path, child)
    save(tmp_path, 2)
    survived("write beyond a file's limit", fired)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB of its own; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_full(small_disk, tmp_path, trials, survived):
    folder = small_disk / "checkpoints"
    folder.mkdir()
    save(folder, 1)
    needed = shutil.disk_usage(small_disk).used
    rng, fired = random.Random(1), trials(5, 25)
    for _ in range(fired):
        left = rng.randrange(0, needed - 8192)
        (small_disk / "others").write_bytes(bytes(shutil.disk_usage(small_disk).free - left))
        assert_unharmed(folder, Child(partial(save, folder, 2), tmp_path / "said"))
        (small_disk / "others").unlink()
    save(folder, 2)
    survived("full disk", fired)


def test_room_is_made_of_what_a_run_turned_away_from(small_disk, tmp_path, survived):
    """Checkpoints set aside go before a training ends for want of room; whole ones in the row stay."""
    folder = small_disk / "checkpoints"
    module = torch.nn.Linear(200, 200)
    state = TrainingState(module, module, torch.optim.SGD(module.parameters()), EMA([], 0.9), {}, step=2)
    for step in (1, 8):
        save(folder, step)
    checkpoint.supersede(folder / checkpoint.name(8))
    (small_disk / "others").write_bytes(bytes(shutil.disk_usage(small_disk).free - 40_000))
    assert Child(partial(save, folder, 2), tmp_path / "said").wait() == 2  # it does not fit as it is
    child = Child(partial(state.save, folder, 2), tmp_path / "said")
    assert child.wait() == 0, child.said()
    assert [path.name for path in sorted(folder.iterdir())] == [checkpoint.name(1), checkpoint.name(2)]
    survived("full disk in a training", 1)


def test_a_training_that_the_disk_cannot_hold_is_refused_at_once(project, tmp_path, monkeypatch):
    def work():
        shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000)
        train("ldm", project, tmp_path / "run")

    child = Child(work, tmp_path / "said")
    assert child.wait() == 2 and "cannot write 5 checkpoints to" in child.said() and "0.0 MiB are free" in child.said()
    assert "step 0 of" not in child.said()


def test_a_log_or_picture_that_cannot_be_written_ends_nothing(project, undisturbed, tmp_path, survived):
    run = tmp_path / "run"
    (run / "log.jsonl").mkdir(parents=True)
    (run / "samples").write_text("a file in the way")
    child = Child(partial(train, "vae", project, run, sample_every=2), tmp_path / "said")
    assert child.wait() == 0, child.said()
    said = child.said()
    assert said.count("warning: cannot write") == 2 and "training continues" in said
    assert content(run / "final") == content(undisturbed("vae") / "final")
    survived("log or samples that cannot be written", 2)


def test_a_tracker_that_fails_ends_nothing(project, tmp_path, survived):
    def work():
        settings = settings_of("clip", project, tmp_path / "run", report_to=["tensorboard"])
        trainer = Trainer(task_of("clip", settings, tmp_path / "run"), settings, tmp_path / "run")

        def fail(*args, **values):
            raise RuntimeError("the tracker is away")

        trainer.accelerator.log = fail
        trainer.fit()

    child = Child(work, tmp_path / "said")
    assert child.wait() == 0, child.said()
    assert child.said().count("the tracker is away") == 1
    survived("failing tracker", 1)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("No space left on device (os error 28)"),
        Exception("File too large (os error 27)"),
    ],
)
def test_a_full_disk_is_known_in_the_words_of_every_library(tmp_path, error):
    with (
        pytest.raises(DiskFull, match="MiB are free there; make room"),
        readable_io_errors(tmp_path / "x", "make room"),
    ):
        raise error


def test_what_may_not_be_written_for_another_reason_is_no_full_disk(tmp_path):
    with (
        pytest.raises(UserError, match="Permission denied") as told,
        readable_io_errors(tmp_path / "x", "choose another"),
    ):
        raise OSError(13, os.strerror(13))
    assert not isinstance(told.value, DiskFull)
