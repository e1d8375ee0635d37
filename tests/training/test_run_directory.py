"""What a run records about itself at its start."""

import json
import os
import platform

import pytest
import torch

from ldm.config.loading import load
from ldm.config.settings import VaeSettings
from ldm.training import run_directory as runs
from ldm.utils.errors import UserError


def test_a_run_records_its_settings_versions_and_hardware(tmp_path):
    settings = VaeSettings(name="demo", output_dir=tmp_path)
    run = runs.open_run(settings, "vae")
    assert [path.name for path in run.iterdir()] == [
        "lock.json"
    ]  # a start that is refused later leaves the record of the last good one
    runs.record(run, settings)
    recorded = json.loads((run / "versions.json").read_text())
    assert recorded["python"] == platform.python_version()
    assert torch.__version__.startswith(recorded["torch"])  # which may go on with +cpu or +cu130
    assert recorded["hardware"] == runs.hardware()
    assert load("vae", run / "config.yaml") == settings
    assert runs.sibling(run, "ldm").parent == run.parent
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "lock.json", "versions.json"]


def test_the_hardware_is_the_gpu_or_the_cpu_with_its_cores(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runs.hardware() == f"{runs.cpu_name()}, {os.cpu_count()} cores"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert runs.hardware() == "Some GPU"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert runs.hardware().startswith(runs.cpu_name())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "processor : 0\nmodel name\t: Fast  CPU @ 2 GHz \nprocessor : 1\nmodel name\t: Fast  CPU @ 2 GHz \n",
            "Fast CPU @ 2 GHz",
        ),
        ("processor : 0\nmodel name\t:\nflags : a b\n", None),
        ("processor : 0\nFeatures : fp asimd\n", None),
    ],
)
def test_a_cpu_without_a_name_is_known_by_its_architecture(tmp_path, text, name):
    (tmp_path / "cpuinfo").write_text(text)
    unnamed = platform.processor() or platform.machine()
    assert runs.cpu_name(tmp_path / "cpuinfo") == (name or unnamed)
    assert runs.cpu_name(tmp_path / "absent") == unnamed


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another --output-dir"):
        runs.open_run(VaeSettings(name="demo", output_dir=tmp_path / "file"), "vae")
