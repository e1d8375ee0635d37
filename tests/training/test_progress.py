"""The lines of progress: durations in words, and a time left that one slow stretch does not decide."""

import io
import time
from types import SimpleNamespace

import pytest
import torch

from ldm.config.settings import TrainOptions
from ldm.training.progress import Meter
from ldm.training.run_log import shortened
from ldm.utils.terminal import LiveLine, duration_text


@pytest.mark.parametrize(
    "seconds, words", [(0.4, "0 s"), (12, "12 s"), (180, "3 min"), (4800, "80 min"), (5400, "1 h 30 min")]
)
def test_durations_are_in_words(seconds, words):
    assert duration_text(seconds) == words


def meter(monkeypatch, **train) -> tuple[Meter, list[float]]:
    """A meter of 1,000 steps and its clock."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    alone = SimpleNamespace(device=torch.device("cpu"), is_main_process=True, reduce=lambda tensor, how: tensor)
    return Meter(alone, TrainOptions(num_steps=1000, batch_size=8, **train), lambda entry: None), now


def test_one_slow_stretch_does_not_decide_the_time_left(monkeypatch, capsys):
    counted, now = meter(monkeypatch)
    for line, seconds in enumerate((1, 1, 30, 1)):  # of each of 20 steps
        for step in range(20):
            now[0] += seconds
            counted.end_step(20 * line + step + 1, 0.0, 1e-3)
        counted.show()
    said = capsys.readouterr().out.splitlines()
    assert "ETA 16 min" in said[0] and "ETA 16 min" in said[2] and "ETA 15 min" in said[3]
    assert "8 images" not in said[2] and "0.3 images/s" in said[2]


def test_on_a_terminal_there_is_a_bar_instead_of_lines(monkeypatch, capsys):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "90")
    counted, now = meter(monkeypatch)
    counted.live = LiveLine(stream)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for loss in (2.0, 1.0):
        for _ in range(5):
            now[0] += 3
            counted.add(torch.tensor(loss), {})
            counted.end_step(counted.step + 1, 0.0, 1e-3)
        counted.show_first()
        counted.show()
    now[0] += 3
    counted.end_step(counted.step + 1, 0.0, 1e-3)
    assert not capsys.readouterr().out
    assert stream.getvalue().split("\r\033[K")[-1] == f"[{'-' * 24}] 11/1000  49 min left  loss 1.0000 down"


def test_the_first_step_has_a_line(monkeypatch, capsys):
    counted, now = meter(monkeypatch)
    now[0] += 2
    counted.end_step(1, 0.0, 1e-3)
    counted.show_first()
    assert capsys.readouterr().out == "step 1/1000  2 s for the first: at most 33 min\n"
    assert counted.steps == 1  # nothing is forgotten
    counted, now = meter(monkeypatch, log_every=1)
    counted.show_first()
    assert not capsys.readouterr().out  # a line comes anyway


def test_a_validation_line_is_short():
    numbers = {f"{weights}/recall@{k}": 0.25 for weights in ("raw", "ema") for k in (1, 5, 10, 20)}
    assert shortened(numbers | {"ema/gap/0.00-0.25": 1.0}) == "recall@1 0.25  recall@5 0.25  recall@10 0.25"
    assert shortened({"raw/psnr": 20.123}) == "psnr 20.12" and shortened({}) == ""
