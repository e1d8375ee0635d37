"""The line of progress: on a terminal it is written over and cut to its width; files and pipes get nothing."""

import io

import pytest

from ldm.cli.common import progress
from ldm.utils import terminal
from ldm.utils.terminal import Count, LiveLine, Parts, bar, counted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that both modules read."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    return now


def shown(stream: Terminal) -> list[str]:
    return stream.getvalue().split("\r\033[K")[1:]


def test_a_line_is_written_over_ten_times_a_second_at_most_and_cut(clock):
    stream = Terminal()
    live = LiveLine(stream)
    for text in ("one", "two", "three"):
        live.show(text)
        clock[0] += 0.06
    live.show("x" * 99, now=True)
    live.clear()
    live.clear()
    assert shown(stream) == ["one", "three", "x" * 39, ""]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_elsewhere_there_is_none(stream, clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    live = LiveLine(stream)
    live.show("one", now=True)
    live.clear()
    assert not live.visible and not stream.getvalue() and progress(3, live) is None


def test_steps_have_a_bar_and_the_time_left(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    step = progress(4, LiveLine(stream))
    for index in range(4):
        clock[0] += 30 if index == 0 else 2  # the first includes loading
        step(index, None, None)
    left = [text.partition("]")[2] for text in shown(stream)]
    assert left == [" 0/4", " 1/4", " 2/4  4 s left", " 3/4  2 s left", " 4/4  0 s left"]
    assert bar(3, 4, 8) == "[######--] 3/4" and bar(0, 0) == f"[{'-' * 24}] 0/0"


def test_parts_of_a_long_work_tell_the_time_left_by_their_weights(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for stream in (io.StringIO(), Terminal()):
        with Parts({"a": 100, "b": 300, "c": 100, "scores": 0}, stream) as parts:
            for name, seconds in (("a", 20), ("b", 60), ("c", 20), ("scores", 500)):
                parts.begin(name)
                clock[0] += seconds
        ends = ["a", "b, about 80 s left", "c, about 20 s left", "scores"]
        if stream.isatty():
            assert [text.partition("/4  ")[2] for text in shown(stream)] == [*ends, ""]
        else:
            assert stream.getvalue().splitlines() == [f"[{i}/4] {text}" for i, text in enumerate(ends, start=1)]


def test_a_count_has_a_bar_on_a_terminal_and_a_line_every_half_minute_elsewhere(clock):
    screen, log_file = Terminal(), io.StringIO()
    for stream in (screen, log_file):
        with Count("encoding", 4000, stream=stream) as count:
            for _ in range(4):
                clock[0] += 20
                count.add(1000)
    assert shown(screen)[0] == f"encoding {bar(1000, 4000)}"[:39] and shown(screen)[-1] == ""
    assert log_file.getvalue().splitlines() == [
        "encoding: 2,000 of 4,000 images, about 40 s left",
        "encoding: 4,000 of 4,000 images, about 0 s left",
    ]


def test_what_is_quick_or_quiet_leaves_no_line(clock, capsys):
    assert list(counted("abc", "reading", 3, "shards")) == ["a", "b", "c"]
    with Count("encoding", 1, quiet=True) as count:
        clock[0] += 60
        count.add()
    assert capsys.readouterr() == ("", "")
