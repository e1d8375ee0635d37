"""One run directory, one training."""

import os
import signal
import time
from functools import partial

from forked import Child, until

from ldm.config.settings import VaeSettings
from ldm.training.run_directory import LOCK, locked_by, open_run


def hold(run, mark) -> None:
    open_run(VaeSettings(name="demo", output_dir=run), "vae")
    mark.touch()
    time.sleep(60)


def test_a_second_training_in_a_run_is_refused_and_names_the_first(tmp_path, trials, survived):
    run, fired = tmp_path / "run", trials(3, 20)
    for i in range(fired):
        mark = tmp_path / f"mark-{i}"
        first = Child(partial(hold, run, mark), tmp_path / "first")
        until(mark.exists)
        second = Child(partial(hold, run, tmp_path / "never"), tmp_path / "second")
        assert second.wait() == 2 and not (tmp_path / "never").exists()
        assert f"is in use by process {first.pid} on" in second.said() and "--output-dir" in second.said()
        asked = Child(lambda: print(locked_by(run)), tmp_path / "asked")
        assert asked.wait() == 0 and f"process {first.pid}" in asked.said()
        first.kill(signal.SIGKILL)
        first.wait()
    free = Child(lambda: print(locked_by(run)), tmp_path / "asked")  # a lock dies with its process
    assert free.wait() == 0 and free.said() == "None\n"
    survived("second start in a run", fired)


def test_of_two_that_start_at_once_one_runs(tmp_path, trials, survived):
    fired = trials(3, 20)
    for i in range(fired):
        run = tmp_path / str(i)
        children = [Child(partial(hold, run, tmp_path / f"{i}-{k}"), tmp_path / f"said-{k}") for k in range(2)]
        until(lambda i=i: any((tmp_path / f"{i}-{k}").exists() for k in range(2)))
        until(lambda c=children: any("in use by" in child.said() for child in c))
        assert sum((tmp_path / f"{i}-{k}").exists() for k in range(2)) == 1
        for child in children:
            child.kill(signal.SIGKILL)
        assert sorted(child.wait() for child in children) in ([-9, 2], [-9, -9])
    survived("two starts at once", fired)


def test_the_owner_can_be_read_by_people(tmp_path):
    child = Child(partial(open_run, VaeSettings(name="demo", output_dir=tmp_path / "run"), "vae"), tmp_path / "said")
    assert child.wait() == 0
    assert f'"pid": {child.pid}' in (tmp_path / "run" / LOCK).read_text() and str(os.uname().nodename)
