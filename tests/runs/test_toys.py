"""From a toy's preset to points, by the commands a user types; the accuracies that are promised are measured here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.evaluation.toys.report import Plan, measure
from ldm.pipelines.generation import SamplingOptions

ROOT = Path(__file__).resolve().parents[2]


def train(preset: str, run: Path, *changes: str) -> None:
    command = [sys.executable, ROOT / "train_ldm.py", ROOT / f"configs/{preset}.yaml", "--output-dir", run, *changes]
    subprocess.run([str(word) for word in command], check=True, cwd=run.parent, timeout=3600)


def evaluate(run: Path, *changes: str) -> dict:
    output = run.parent / "report"
    command = [sys.executable, "-m", "ldm", "evaluate", run, "-o", output, *changes]
    subprocess.run([str(word) for word in command], check=True, cwd=ROOT, timeout=3600)
    return json.loads((output / "metrics.json").read_text())


@pytest.mark.slow
def test_a_short_run_moves_towards_the_truth(tmp_path):
    """60 small steps on one Gaussian: the mean comes from 0 towards 1, the width from 1 towards 0.5."""
    from ldm.data.toy import Gaussian
    from ldm.pipelines.loading import load_pipeline

    few = [
        "--train.num_steps",
        "60",
        "--train.batch_size",
        "256",
        "--train.sample_every",
        "0",
        "--data.toy.size",
        "2000",
    ]
    train("toy-gaussian", tmp_path / "ldm", *few, "--train.report_to", "none", "--optim.warmup_steps", "10")
    pipeline = load_pipeline(tmp_path / "ldm")
    metrics = measure(pipeline, Gaussian(), Plan(samples=500, sets=1, fresh=3, sampling=SamplingOptions(steps=10)))
    assert 0.6 < metrics["moments"]["model"]["mean"][0] < 1.4
    assert 0.3 < metrics["moments"]["model"]["std"][0] < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["toy-swiss-roll", "toy-8-gaussians", "toy-8-gaussians-class"])
def test_what_the_presets_promise(preset, tmp_path):
    train(preset, tmp_path / "ldm")
    metrics = evaluate(tmp_path / "ldm")
    assert metrics["plan"]["defaults"]["num_inference_steps"] == 40
    if preset == "toy-8-gaussians-class":
        assert metrics["classes"]["accuracy"]["share"] >= 0.99
        return
    assert all(entry["ratio"] <= 1.25 for entry in metrics["distance"].values())
    assert metrics["likelihood"]["gap"] < 0.1
    if "modes" in metrics:
        assert metrics["modes"]["covered"] == 8 and metrics["modes"]["worst_points"] <= 3
