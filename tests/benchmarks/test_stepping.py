"""Programs halt after each step and end when told; parts of a step are timed where they happen, and nothing is left."""

import importlib
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def stepping():
    folder = str(Path(__file__).resolve().parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module("stepping")
    sys.path.remove(folder)
    for name in ("stepping", "protocol"):
        sys.modules.pop(name, None)


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_two_programs_take_turns_and_end_in_mid_course(stepping):
    seen, ended = [], []

    def counting(name):
        def run(pause):
            try:
                for step in range(10**9):
                    seen.append((name, step))
                    pause()
            finally:
                ended.append(name)

        return stepping.Program(run)

    a, b = counting("a"), counting("b")
    for program in (a, b, b, a, a):
        program.step()
    assert seen == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2)]
    for program in (a, b):
        program.stop()
    assert sorted(ended) == ["a", "b"] and a.finished and b.finished


def test_what_a_program_raises_is_raised_here(stepping):
    def run(pause):
        pause()
        raise ValueError("in the second step")

    program = stepping.Program(run)
    program.step()
    with pytest.raises(ValueError, match="in the second step"):
        program.step()


class Base:
    def forward(self):
        burn(0.02)
        return "result"


class Model(Base):
    def loss(self):
        burn(0.03)
        return self.forward()


def test_parts_are_timed_once_and_methods_put_back(stepping):
    model, own = Model(), Model.loss
    with stepping.Parts({"loss": [(Model, "loss")], "forward": [(Model, "forward")]}) as parts:
        assert model.loss() == "result" and model.forward() == "result"
        taken = parts.take()
        assert parts.take() == {}
    assert Model.loss is own and "forward" not in vars(Model)
    assert len(taken["loss"]) == len(taken["forward"]) == 1  # the forward within the loss is the loss's
    assert taken["loss"][0].cpu >= 0.05 and 0.02 <= taken["forward"][0].cpu < 0.05


def test_what_no_part_accounts_for_is_other(stepping):
    timings = {seconds: stepping.Timing(seconds, 2 * seconds, None) for seconds in (1.0, 2.0, 5.0)}
    parts = {"steps": 2, "whole": [timings[5.0]] * 2, "a": [timings[1.0]] * 2, "b": [timings[2.0]]}
    assert stepping.part_seconds(parts, "a", "cpu") == 1 and stepping.part_seconds(parts, "b", "wall") == 2
    assert stepping.part_seconds(parts, "other", "cpu") == 5 - 1 - 1
    assert stepping.part_seconds(parts, "absent", "cpu") == 0
