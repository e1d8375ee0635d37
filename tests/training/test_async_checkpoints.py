"""Checkpoints that are written while the training continues are those that it would have waited for."""

from threading import Event

import pytest
from accelerate.state import AcceleratorState
from tiny_trainings import content

from ldm.training.trainer import Trainer
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.errors import UserError
from tests.training.test_trainer import LineTask, settings


@pytest.fixture(autouse=True)
def another_training():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_they_hold_the_step_that_they_are_of_though_later_ones_are_taken_meanwhile(tmp_path, monkeypatch):
    Trainer(LineTask(), settings(keep_checkpoints=9), tmp_path / "whole").fit()
    trainer = Trainer(LineTask(), settings(keep_checkpoints=9, async_checkpoints=True), tmp_path / "run")
    save, step, stepped, at_work = checkpoint.save, trainer._step, Event(), []

    def save_late(path, tensors, state):
        at_work.append(path.name)
        assert len(at_work) == 1
        assert state["step"] == trainer.train.num_steps or stepped.wait(60)  # the training continues
        save(path, tensors, state)
        at_work.pop()

    def told(*args):
        stepped.clear()
        step(*args)
        stepped.set()

    monkeypatch.setattr(checkpoint, "save", save_late)
    trainer._step = told
    trainer.fit()
    for name in (checkpoint.name(4), checkpoint.name(8), checkpoint.name(12)):
        assert content(tmp_path / "run/checkpoints" / name) == content(tmp_path / "whole/checkpoints" / name)
    assert content(tmp_path / "run/final") == content(tmp_path / "whole/final")


@pytest.mark.parametrize("failing", [4, 12])
def test_an_error_of_the_writer_ends_the_training(failing, tmp_path, monkeypatch):
    save = checkpoint.save

    def fail(path, tensors, state):
        if state["step"] == failing:
            raise UserError("cannot write: the disk is gone")
        save(path, tensors, state)

    monkeypatch.setattr(checkpoint, "save", fail)
    trainer = Trainer(LineTask(), settings(async_checkpoints=True), tmp_path)
    with pytest.raises(UserError, match="the disk is gone"):
        trainer.fit()
    assert trainer.step <= failing + 4 and not (tmp_path / "final").exists()  # at the next saving at the latest
