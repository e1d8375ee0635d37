"""The table of latent spaces: what is unfinished is '-', and the settings of a row are those it names."""

import argparse
import importlib.util
import json
from pathlib import Path

import pytest

from ldm.utils.errors import UserError

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "autoencoders.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("benchmark_autoencoders", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def args(bench, tmp_path):
    return argparse.Namespace(output=tmp_path, config=bench.CONFIG, vae_steps=7, ldm_seconds=1.0, samples=4)


def test_settings_follow_the_row(bench, args):
    for row, factor in (("kl-f4", 4), ("vq-f8", 8), ("vq-f16", 16)):
        settings = bench.vae_settings(row, args)
        assert (settings.model.kind, settings.model.factor) == (row[:2], factor)
        assert settings.model.latent_channels == bench.CHANNELS[row] and settings.train.num_steps == 7


@pytest.mark.slow
def test_steps_are_measured_once_and_then_kept(bench, args, monkeypatch):
    monkeypatch.setattr(bench, "_cpu_seconds", lambda subjects: dict.fromkeys(subjects, 0.125))
    bench.budget(args)
    steps = json.loads((args.output / "steps.json").read_text())
    assert list(steps) == bench.ROWS and all(facts["steps"] == 8 for facts in steps.values())
    assert steps["identity"]["flops_per_picture"] > 8 * steps["kl-f4"]["flops_per_picture"]
    monkeypatch.setattr(bench, "_cpu_seconds", lambda subjects: pytest.fail("measured again"))
    bench.budget(args)


def test_a_row_in_the_middle_shows_what_it_has(bench, args, capsys):
    with pytest.raises(UserError, match="nothing is finished"):
        bench.table(bench.ROWS, args)
    report = {"psnr": 26.04, "ssim": 0.9, "ocr": {"same_after": 0.5}, "rate": {"bits_per_pixel": 0.5625}}
    report["rate"] |= {"entropy_bits_per_pixel": 0.4, "codes_used": 1.0, "perplexity": 123.4}
    (args.output / "vq-f4" / "vae").mkdir(parents=True)
    (args.output / "vq-f4" / "vae" / "report.json").write_text(json.dumps(report))
    bench.table(bench.ROWS, args)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| vq-f4"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:8] == ["vq-f4", "1024", "26.0", "0.900", "50.0%", "0.562 (0.400)", "100.0%", "123"]
    assert set(cells[8:]) == {"-"} and len(cells) == len(bench.HEADS)
    assert "One seed" in (args.output / "autoencoders.md").read_text()
