"""The table of `make faults` counts what fired, and only in tests that passed."""

import subprocess
import sys
from pathlib import Path

SAMPLE = """
def test_met(survived, trials):
    survived("lightning", trials(2, 5))
def test_failed(survived):
    survived("flood", 7)
    assert False
def test_none_fired(survived):
    survived("frost", 0)
"""


def test_only_faults_that_fired_in_tests_that_passed_are_counted(tmp_path):
    (tmp_path / "conftest.py").write_text((Path(__file__).parents[1] / "conftest.py").read_text())
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    for flags, number in (([], "2"), (["--all-faults"], "5")):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *flags, str(tmp_path)]
        shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout
        counted = shown.split("faults injected and met")[1].split("short test summary")[0]
        assert f"{number}  lightning" in counted and "flood" not in counted and "frost" not in counted
        assert "1 passed" in shown and "2 failed" in shown
