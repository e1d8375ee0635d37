"""`make gpu` keeps its time, and says what went wrong."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from scripts import gpu_report
from scripts.gpu_report import BUDGET, Check, checks, markdown, python, run


@pytest.mark.parametrize("gpu", [True, False])
def test_the_limits_add_up_to_the_time_that_is_promised(gpu):
    assert sum(check.seconds for check in checks(gpu)) <= BUDGET == 720


@pytest.mark.parametrize(("code", "failed", "verdict"), [(0, False, "ok"), (3, True, "failed (3)")])
def test_a_check_that_ends_keeps_its_output_and_code(code, failed, verdict, tmp_path):
    found = run(Check("one", python("-c", f"print('said'); raise SystemExit({code})"), 60), tmp_path, 60)
    assert (found.code, found.failed, found.verdict, found.output) == (code, failed, verdict, "said")


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")
@pytest.mark.parametrize("partial", [True, False])
def test_a_check_out_of_time_ends_with_all_that_it_started(partial, tmp_path):
    """It is a failure only where a part of it is worth nothing."""
    mark = tmp_path / "child"
    child = f"import time, os; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    parent = f"import subprocess, sys; print('begun'); subprocess.run([sys.executable, '-c', {child!r}])"
    watched = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # not of the check
    try:
        seconds, found = 1.0, None
        while found is None or not mark.exists() or not mark.read_text():  # a busy machine needs longer to begin
            seconds, found = 2 * seconds, run(Check("one", python("-c", parent), 600, partial), tmp_path, seconds)
        assert found.code is None and found.failed is not partial and found.output == "begun"
        assert found.verdict.startswith(f"out of time after {found.seconds:.0f} s: ")
        assert ends(int(mark.read_text())) and watched.poll() is None
    finally:
        watched.kill()
        watched.wait()


def ends(pid: int) -> bool:
    """Whether a process ends; one that is dead and that nobody has collected counts."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(("partial", "code"), [(True, 0), (False, 1)])
def test_the_report_has_each_check_in_a_line(partial, code, tmp_path, monkeypatch, capsys):
    commands = [Check("quick", python("-c", "print('done')"), 60), Check("slow", ["sleep", "600"], 0.1, partial)]
    monkeypatch.setattr(gpu_report, "checks", lambda gpu: commands)
    monkeypatch.setattr(gpu_report, "device_name", lambda: "")
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", "-o", str(tmp_path)])
    assert gpu_report.main() == code
    said, report = capsys.readouterr().out, (tmp_path / "gpu.md").read_text()
    assert "no GPU here" in said and "quick: ok (" in said and "slow: out of time after" in said
    assert "No GPU here" in report and "| quick | ok | " in report and "| slow | out of time after" in report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.md", "results.json"]


def test_a_report_names_the_gpu():
    assert markdown("Some GPU", []).startswith("# GPU report\n\nSome GPU\n")
