"""Limits that a parent keeps, where the kernel keeps none."""

import subprocess
import sys
import time

import pytest

from ldm.formats import decode_workers, process_watch
from ldm.formats.decoding import ImageError
from ldm.formats.process_watch import Watch

BUSY = "while True: pass"
GREEDY = "import time; kept = bytearray(b'x') * (300 * 2**20); time.sleep(60)"


@pytest.fixture
def start(monkeypatch):
    monkeypatch.setattr(process_watch, "SECONDS_BETWEEN_LOOKS", 0.02)
    started = []

    def begin(program):
        started.append(subprocess.Popen([sys.executable, "-S", "-c", program]))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("program", "seconds", "exceeded"), [(BUSY, 0.2, "time"), (GREEDY, 60, "memory")])
def test_a_process_that_takes_too_much_is_ended(start, program, seconds, exceeded):
    process = start(program)
    watch = Watch(process, seconds, 2**28)
    with watch.working():
        process.wait(60)
        watch.join()
    assert watch.exceeded == exceeded and process.returncode


def test_time_that_a_process_has_taken_before_its_work_does_not_count(start):
    process = start(BUSY)
    time.sleep(0.5)
    watch = Watch(process, 20, 2**28)
    with watch.working():
        time.sleep(0.1)
    assert process.poll() is None and not watch.exceeded


def test_a_process_without_work_is_left_alone_and_a_dead_one_ends_the_watch(start):
    process = start(BUSY)
    watch = Watch(process, 0.0, 0)
    time.sleep(0.2)
    assert process.poll() is None
    process.kill()
    watch.join(10)
    assert not watch.exceeded and not watch.is_alive()


def test_images_are_decoded_under_the_limits_of_a_parent(monkeypatch):
    """Without those of the kernel an honest image is decoded, and one that asks for too much is refused by name."""
    from pictures import many_scans, seeds

    monkeypatch.setattr(decode_workers, "kernel_keeps_limits", lambda: False)
    monkeypatch.setattr(decode_workers, "SECONDS", 1)
    monkeypatch.setattr(process_watch, "SECONDS_BETWEEN_LOOKS", 0.02)
    slow = many_scans(6000, 1000)
    worker = decode_workers.Worker("look", {})
    try:
        first = worker(seeds()["RGB.png"])
        assert worker._watch is not None
        with pytest.raises(ImageError, match="takes more than 1 s to decode"):
            worker(slow)
        assert worker(seeds()["RGB.png"]) == first
    finally:
        worker.stop()
