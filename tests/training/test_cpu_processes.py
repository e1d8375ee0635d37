"""How many CPU processes a training takes, and what becomes of them."""

import os
import subprocess
import sys

import pytest
import torch
from commands import ROOT

from ldm.cli.train import processes_of
from ldm.training import cpu_processes
from ldm.utils.errors import UserError


@pytest.fixture(autouse=True)
def four_cores(monkeypatch):
    for name in ("RANK", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpu_processes, "usable_cores", lambda: 6)
    monkeypatch.setattr(cpu_processes, "MEMORY", 1)


@pytest.mark.parametrize("batches, count", [([64, 16], 4), ([64, 6], 2), ([63], 1), ([], 4)])
def test_a_power_of_two_that_divides_all_batches(batches, count):
    assert cpu_processes.useful(batches) == count


def test_no_more_than_memory_and_the_most_allow(monkeypatch):
    monkeypatch.setattr(cpu_processes, "MOST", 2)
    assert cpu_processes.useful([64]) == 2
    monkeypatch.setattr(cpu_processes, "MEMORY", 1e18)
    assert cpu_processes.useful([64]) == 1


def test_what_somebody_chose_counts(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert processes_of({}, "images") == 4 and processes_of({"processes": 3}, "images") == 3
    assert processes_of({"train": {"threads": 2}}, "images") == 1
    assert processes_of({"vae": {"train": {"batch_size": 2}}}, "images") == 2
    (tmp_path / "images.yaml").write_text("train: {batch_size: 12, gradient_accumulation_steps: 3}")
    assert processes_of({}, "images") == processes_of({}, "images.yaml") == 4
    with pytest.raises(UserError, match="--processes 0 must be 1 or more"):
        processes_of({"processes": 0}, "images")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert processes_of({}, "images") == 1 and processes_of({"processes": 2}, "images") == 2
    monkeypatch.setenv("RANK", "1")
    assert processes_of({"processes": 2}, "images") == 1


def test_a_gpu_keeps_the_training_in_one_process(monkeypatch):
    monkeypatch.setattr("ldm.training.devices.training_device", lambda: torch.device("cuda"))
    assert cpu_processes.useful([64]) == 1


@pytest.mark.slow
def test_bad_input_ends_all_processes_with_one_line_and_its_exit_code(tmp_path):
    words = [sys.executable, "-m", "ldm", "train", "missing", "--processes", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: data.source missing does not exist")
