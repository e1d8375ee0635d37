"""Ablations: arms whose settings exist, commands that are not run twice, and tables worked out by hand."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ldm.config.overrides import parse
from ldm.utils.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
FILES = sorted(FOLDER.glob("ablations-*.yaml"))


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_ablations", FOLDER / "ablations.py")
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    yield loaded
    sys.path.remove(str(FOLDER))


def write(tmp_path, text):
    (tmp_path / "config.yaml").write_text("data: {source: toy, resolution: 16}\nldm: {train: {num_steps: 3}}\n")
    (tmp_path / "arms.yaml").write_text(text)
    return tmp_path / "arms.yaml"


SMALL = """
config: config.yaml
once: [vae]
stages: [clip, ldm]
common: {train.num_steps: 5}
evaluate: [--samples, 3]
columns: {radical: summary.pair_radical, loss: learning.loss}
arms:
  base: {}
  wide: {data.channels: 3, ldm.model.block_out_channels: [8, 16], ldm.text.train: true}
  far, too: {from: wide, clip.loss.hard_negatives: 2, ldm.alignment.source: "{shared}/clip"}
"""


@pytest.fixture
def plan(bench, tmp_path):
    return bench.Plan(write(tmp_path, SMALL), tmp_path / "out")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_arm_has_settings_that_exist_and_differs_from_the_others(bench, tmp_path, path):
    plan, seen = bench.Plan(path, tmp_path), set()
    for arm in plan.given:
        steps = [step for step in plan.steps(arm, 3) if bench.EVALUATION not in step.name]
        found = [parse(step.name.rpartition(" ")[2], step.command[2:])[0] for step in steps]
        assert all(one.seed == 3 and one.output_dir.is_relative_to(tmp_path) for one in found)
        seen.add(json.dumps([one.model_dump(mode="json", exclude={"output_dir"}) for one in found]))
    assert len(seen) == len(plan.given)


def test_settings_go_to_the_stage_that_they_name(plan, tmp_path):
    once, clip, ldm, evaluation = (step.command for step in plan.steps("far, too", 4))
    assert once[-2:] == ["--train.num_steps", "5"] and "train_vae.py" in once[1]
    assert clip[-6:] == ["--train.num_steps", "5", "--data.channels", "3", "--loss.hard_negatives", "2"]
    shared = str(tmp_path / "out" / "once" / "seed-4")
    assert ldm[ldm.index("--vae") + 1] == f"{shared}/vae" and ldm[ldm.index("--seed") + 1] == "4"
    assert ldm[ldm.index("--model.block_out_channels") + 1 :][:2] == ["8", "16"]
    assert ldm[-2:] == ["--alignment.source", f"{shared}/clip"] and ldm[ldm.index("--text.train") + 1] == "true"
    folder = tmp_path / "out" / "far-too" / "seed-4"
    assert evaluation[3:] == ["evaluate", str(folder / "ldm"), "-o", str(folder / "evaluation"), "--samples", "3"]


def test_what_is_finished_is_not_done_again(bench, plan, monkeypatch):
    done, fails = [], ["ldm"]

    def run(command, cwd):
        done.append(command)
        name = next((name for name in ("vae", "clip", "ldm") if f"train_{name}.py" in command[1]), "evaluate")
        if name in fails:
            return SimpleNamespace(returncode=1)
        if name == "evaluate":
            report = Path(command[command.index("-o") + 1])
            report.mkdir(parents=True)
            (report / "metrics.json").write_text("{}")
        else:
            Path(command[command.index("--output-dir") + 1], "final").mkdir(parents=True)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(bench, "subprocess", SimpleNamespace(run=run))
    command = [str(plan.path), "base", "-o", str(plan.output), "--seeds", "0"]
    with pytest.raises(UserError, match="base seed 0 ldm ended with code 1"):
        bench.main(command)
    assert len(done) == 3
    fails.clear()
    bench.main(command)
    assert len(done) == 5 and "train_ldm.py" in done[3][1] and "evaluate" in done[4]
    bench.main(command)
    assert len(done) == 5
    bench.main([str(plan.path), "base", "wide", "-o", str(plan.output), "--seeds", "0"])
    assert len(done) == 8  # the autoencoder is there


def finished(plan, arm, seed, radical, interval=(0.1, 0.3), loss=None):
    folder = plan.folder(arm, seed)
    (folder / "evaluation").mkdir(parents=True)
    metrics = {"summary": {"pair_radical": {"value": radical, "interval": list(interval)}}}
    metrics |= {"learning": {"loss": loss}} if loss else {}
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    (folder / "times.json").write_text(json.dumps({"x ldm": 120, "x evaluation": 60}))


def test_the_table_has_means_intervals_and_differences_between_equal_seeds(bench, plan):
    for seed, base, wide in ((0, 0.25, 0.5), (1, 0.5, 0.75), (2, 0.75, 1.0)):
        finished(plan, "base", seed, base)
        finished(plan, "wide", seed, wide, loss=2.0)
    finished(plan, "far, too", 1, 0.75)
    lines = bench.report(plan, list(plan.given), [0, 1, 2]).splitlines()
    assert lines[2] == "| base | 3 | 0.5 ± 0.62 | - | 2.0 |"  # 4.30 * 0.25 / sqrt(3)
    assert lines[3] == "| wide | 3 | 0.75 ± 0.62; +0.25 ± 0 | 2 ± 0 | 2.0 |"
    assert lines[4] == "| far, too | 1 | 0.75 (0.1 to 0.3); +0.25 | - | 2.0 |"
    assert json.loads((plan.output / "ablations.json").read_text())["arms"]["wide"]["data.channels"] == 3


def test_a_column_finds_numbers_values_and_shares(bench):
    metrics = {"a": {"b": 0.5}, "c": {"value": 2, "interval": [1, 3]}, "d": {"share": 0.25, "n": 4}, "e": {"": 1.0}}
    found = {path: bench.looked_up(metrics, path) for path in ("a.b", "c", "d", "e", "a.x", "x.y")}
    none = dict.fromkeys(("e", "a.x", "x.y"))
    assert found == {"a.b": (0.5, []), "c": (2.0, [1, 3]), "d": (0.25, [])} | none


@pytest.mark.parametrize(
    "change, said",
    [
        (("stages: [clip, ldm]", "stages: [clap]"), "stages are clip, vae, ldm"),
        (("arms:", "legs:"), "unknown legs"),
        (("columns: {radical: summary.pair_radical, loss: learning.loss}", ""), "has no columns"),
        (("from: wide", "from: further"), "none of the arms above"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(bench, tmp_path, change, said):
    path = write(tmp_path, SMALL.replace(*change))
    with pytest.raises(UserError, match=said) as caught:
        bench.Plan(path, tmp_path).settings("far, too")
    assert "\n" not in str(caught.value)


def test_an_unknown_arm_is_refused(bench, tmp_path):
    with pytest.raises(UserError, match="arms must be of base"):
        bench.main([str(write(tmp_path, SMALL)), "bass", "-o", str(tmp_path / "out")])


def test_a_dry_run_prints_commands_and_the_time(bench, plan, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measured_speed", lambda stage, settings, config: 8.0)
    monkeypatch.setattr(plan, "once", [])
    (plan.folder("base", 0) / "clip" / "final").mkdir(parents=True)
    bench.dry_run(plan, ["base"], [0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# finished: ") and "train_ldm.py" in lines[1] and "evaluate" in lines[2]
    assert lines[3].startswith("about 1 minutes for 320 images")  # 5 steps of 64 images, 40 s


@pytest.mark.slow
def test_two_arms_of_points_are_trained_evaluated_and_compared(tmp_path):
    text = """
config: config.yaml
common: {ldm.denoiser: mlp, ldm.vae: identity, ldm.text.source: none, data.toy.name: gaussian, ldm.train.batch_size: 64,
         ldm.sampling.num_inference_steps: 4, train.report_to: none, data.toy.size: 500}
evaluate: [--samples, 200]
columns: {steps: settings.num_inference_steps}
arms: {base: {}, muon: {ldm.optim.name: muon}}
"""
    path = write(tmp_path, text)
    command = [sys.executable, str(FOLDER / "ablations.py"), str(path), "-o", str(tmp_path / "out"), "--seeds", "0"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "| muon | 1 |" in said.stdout
