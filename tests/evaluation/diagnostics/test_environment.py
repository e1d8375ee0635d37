"""The health check: every line has a status and, where something is wrong, advice; the exit code follows."""

import argparse
import contextlib
import json

import psutil
import pytest
from forked import Child

from ldm.cli import doctor as command
from ldm.cli.main import main
from ldm.evaluation.diagnostics import environment as doctor
from ldm.evaluation.diagnostics.findings import Finding

GIB = 2**30


def with_checks(monkeypatch, *statuses):
    checks = {status + str(i): lambda s=status: Finding("x", s, "text", "advice") for i, status in enumerate(statuses)}
    monkeypatch.setattr(doctor, "CHECKS", checks)


@pytest.mark.parametrize(("statuses", "code"), [(["ok"], 0), (["ok", "warn"], 0), (["warn", "fail", "ok"], 1)])
def test_the_exit_code_is_1_only_if_something_fails(monkeypatch, capsys, statuses, code):
    with_checks(monkeypatch, *statuses)
    assert command.run(argparse.Namespace(folder=None, json=False)) == code
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[::2]] == statuses


def test_json_says_the_same_as_the_lines(monkeypatch, capsys):
    with_checks(monkeypatch, "ok", "fail")
    assert command.run(argparse.Namespace(folder=None, json=True)) == 1
    found = json.loads(capsys.readouterr().out)
    assert [item["status"] for item in found] == ["ok", "fail"]
    assert set(found[0]) == {"name", "status", "text", "advice"}


def test_a_check_that_breaks_is_a_failing_line_and_the_others_still_speak(monkeypatch):
    def broken():
        raise OSError("disk on\nfire")

    monkeypatch.setattr(doctor, "CHECKS", {"a": broken, "b": lambda: Finding("b", "ok", "fine")})
    first, second = doctor.findings()
    assert first.status == "fail" and "OSError: disk on fire" in first.text
    assert second.status == "ok"


def test_tested_versions_come_from_the_constraints():
    versions = doctor.tested_versions()
    assert versions["torch"] == "2.13.0"
    assert "pydantic-core" in versions  # names are normalised


def test_a_missing_or_old_package_fails_and_another_version_warns(monkeypatch):
    requires = ["one>=2.0", "two>=1.0", 'three>=1; extra == "dev"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: requires)
    monkeypatch.setattr(doctor, "tested_versions", lambda: {"one": "2.1", "two": "1.5"})
    installed = {"one": "2.1+cpu", "two": "1.5"}
    monkeypatch.setattr(doctor, "_version_of", installed.get)
    assert doctor.check_packages().status == "ok"  # a local suffix is the same version
    installed["two"] = "1.6"
    found = doctor.check_packages()
    assert found.status == "warn" and "two 1.6 (tested 1.5)" in found.text
    installed["one"] = "1.9"
    del installed["two"]
    found = doctor.check_packages()
    assert found.status == "fail" and "one 1.9 (needs >=2.0)" in found.text and "two is missing" in found.text


def test_threads_that_spin_are_warned_of(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert doctor.check_threads().status == "warn"


@pytest.mark.parametrize("features", ["Features : fp asimd\n", "flags : avx2\n"])
def test_a_cpu_that_lists_no_flags_is_no_failure(tmp_path, features):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{features}")
    assert doctor.check_cpu(tmp_path / "cpuinfo").status == "ok"
    assert doctor.check_cpu(tmp_path / "none").status == "ok"


def test_memory_is_the_smaller_of_system_and_container(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 99 kB\nMemAvailable:   {8 * 2**20} kB\n")
    elsewhere = doctor.available_memory(tmp_path / "none", tmp_path)  # as on macOS and Windows
    assert abs(elsewhere - psutil.virtual_memory().available) < 2 * GIB
    assert doctor.available_memory(meminfo, tmp_path) == 8 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    assert doctor.available_memory(meminfo, tmp_path) == 8 * GIB
    (tmp_path / "memory.max").write_text(f"{3 * GIB}\n")
    assert doctor.available_memory(meminfo, tmp_path) == 2 * GIB


@pytest.mark.parametrize(("left", "status"), [(8 * GIB, "ok"), (2 * GIB, "warn"), (GIB // 2, "fail")])
def test_memory_is_judged_by_what_drawing_and_training_need(monkeypatch, left, status):
    monkeypatch.setattr(doctor, "available_memory", lambda: left)
    assert doctor.check_memory().status == status


@pytest.mark.parametrize(
    ("returncode", "stderr", "status"),
    [
        (0, "", "ok"),
        (1, "Traceback\nRuntimeError: operator torchvision::nms does not exist\n", "warn"),
        (1, "Traceback\nImportError: libpng.so is not here\n", "fail"),
        (-11, "", "fail"),
    ],
)
def test_the_three_cases_of_torchvision(returncode, stderr, status):
    assert doctor.torchvision_finding("0.28.0", returncode, stderr).status == status


def test_the_model_is_compared_with_its_recorded_digest(monkeypatch):
    from ldm.pipelines import model_folder

    class Found:
        defaults = {"name": "glyphs", "digest": "abc"}
        digest = staticmethod(lambda: "abc")

    monkeypatch.setattr(model_folder, "resolve_model", lambda _: Found)
    assert doctor.check_model().status == "ok"
    Found.digest = staticmethod(lambda: "other")
    assert doctor.check_model().status == "fail"


def test_a_missing_model_fails_with_advice(monkeypatch, tmp_path):
    from ldm.utils import assets

    monkeypatch.setattr(assets, "PACKAGE", tmp_path / "ldm")
    found = doctor.check_model()
    assert found.status == "fail" and found.advice


def test_the_command_answers_every_check_and_gives_advice_where_something_is_wrong(tmp_path):
    def ask():
        with (tmp_path / "found.json").open("w") as out, contextlib.redirect_stdout(out):
            main(["doctor", "--json"])

    child = Child(ask, tmp_path / "said")
    code, found = child.wait(), json.loads((tmp_path / "found.json").read_text())
    assert [item["name"] for item in found] == list(doctor.CHECKS), child.said()
    for item in found:
        assert item["text"] and (item["status"] == "ok") == (not item["advice"]), item
    assert code == any(item["status"] == "fail" for item in found)
