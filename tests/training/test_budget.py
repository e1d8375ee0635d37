"""`ldm plan`: known answers, files and flags that the trainers take, and one real run against its plan."""

import json
import math

import pytest
import torch
import yaml
from commands import train

from ldm.cli import main as cli
from ldm.cli.plan import _bytes, flags, write
from ldm.config.loading import load
from ldm.config.overrides import parse_overrides
from ldm.config.settings import LdmSettings
from ldm.training import budget
from ldm.training.budget import MIN_STEPS, SLACK, overhead_seconds, propose
from ldm.training.cost_estimate import CostCount, Forecast, Speed
from ldm.utils.assets import shipped_configs
from ldm.utils.errors import UserError

SMOKE = shipped_configs() / "smoke.yaml"
GLYPHS = shipped_configs() / "glyphs-cpu.yaml"
MIB = 2**20


def forecast(part, settings, config=None, timed=True) -> Forecast:
    """A device that takes 10 ms an image, for a U-Net in proportion to its width; an image holds 1 MiB."""
    wide = settings.model.block_out_channels[0] / 64 if isinstance(settings, LdmSettings) else 1.0
    cost = CostCount(1000, 1000, 1, round(MIB * wide))
    local = settings.train.batch_size // settings.train.gradient_accumulation_steps
    return Forecast(cost, Speed(100 / wide, 0.0), 1, local, 20 * MIB, "", torch.device("cpu"), None)


@pytest.fixture(autouse=True)
def a_known_device(monkeypatch, request):
    if "slow" not in request.keywords:
        monkeypatch.setattr(budget, "forecast", forecast)
        monkeypatch.setattr(budget, "program_memory", lambda: 100 * MIB)


def test_every_part_fits_its_time_and_uses_it():
    found = propose(GLYPHS, 240.0, 2**40)
    assert [one.part for one in found] == ["clip", "vae", "ldm"]
    whole = 60 * 240
    assert sum(one.seconds for one in found) <= SLACK * whole
    for one, share in zip(found, (0.25, 0.25, 0.5), strict=True):
        step = one.settings.train.batch_size * (0.01 if one.part != "ldm" else 0.01 * _width(one) / 64)
        assert 0 <= SLACK * share * whole - one.seconds < step + 1e-6
        assert one.settings.train.planned_minutes == pytest.approx(one.seconds / 60, abs=0.01)


def _width(one) -> int:
    return one.settings.model.block_out_channels[0]


def test_more_minutes_make_a_wider_unet_and_never_too_few_steps():
    widths = []
    for minutes in (15, 60, 240, 960):
        unet = propose(GLYPHS, minutes, 2**40)[-1]
        widths.append(_width(unet))
        assert unet.steps >= MIN_STEPS or _width(unet) == 16
    assert widths == sorted(widths) and widths[0] < widths[-1]
    assert all(width % 16 == 0 for width in widths)  # norms have groups of 16 there


def test_in_little_time_the_batch_is_smaller_and_so_is_the_learning_rate():
    unet = propose(GLYPHS, 6, 2**40)[-1]
    original = load("ldm", GLYPHS)
    share = unet.settings.train.batch_size / original.train.batch_size
    assert share < 1 and unet.settings.optim.lr == pytest.approx(original.optim.lr * math.sqrt(share), rel=0.02)


def test_little_memory_splits_the_batch_of_all_but_clip():
    clip, vae, ldm = propose(GLYPHS, 240.0, (100 + 20 + 14 * 1.4) * MIB)
    assert clip.settings.train.batch_size == 8 and clip.settings.train.gradient_accumulation_steps == 1
    assert (vae.settings.train.batch_size, vae.settings.train.gradient_accumulation_steps) == (16, 2)
    assert ldm.forecast.local * _width(ldm) / 64 <= 14
    assert max(one.memory for one in (clip, vae, ldm)) <= 139.6 * MIB


def test_what_does_not_fit_is_one_line():
    with pytest.raises(UserError, match="clip: one image does not fit into 101 MiB: give more --memory"):
        propose(GLYPHS, 60, 101 * MIB)
    with pytest.raises(UserError, match=r"give \d+\.\d times as many --minutes"):
        propose(GLYPHS, 0.5, 2**40)


def test_parts_that_are_there_already_are_not_planned(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"extends: {GLYPHS}\nldm: {{vae: some/vae, text: {{source: some/clip}}}}\n")
    (only,) = propose(tmp_path / "mine.yaml", 30, 2**40)
    assert only.part == "ldm" and only.seconds > 0.9 * SLACK * 30 * 60


def test_reports_cost_what_they_draw():
    settings = load("ldm", SMOKE)
    few = overhead_seconds("ldm", settings, forecast("ldm", settings), None)
    sampling = settings.sampling.model_copy(update={"num_inference_steps": 8})  # it had 4
    more = overhead_seconds("ldm", settings.model_copy(update={"sampling": sampling}), forecast("ldm", settings), None)
    pictures = 2 * 2 + 40
    assert more - few == pytest.approx(6 * pictures * 4 * 2 * 0.01 * _wide(settings) / 3)


def _wide(settings) -> float:
    return settings.model.block_out_channels[0] / 64


def test_the_file_and_the_flags_say_the_same(tmp_path):
    found = propose(GLYPHS, 60, 2**40)
    path = tmp_path / "deep" / "mine.yaml"
    write(path, GLYPHS, found)
    for one in found:
        by_file, by_flags = (
            load(one.part, path),
            load(one.part, GLYPHS, parse_overrides(one.part, [*flags(one.changes)])),
        )
        assert by_file.model_copy(update={"name": "glyphs-cpu"}) == by_flags == one.settings
    with pytest.raises(UserError, match="the config itself"):
        write(GLYPHS, GLYPHS, found)


def test_the_command_prints_how_to_train(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", str(GLYPHS), "--minutes", "60", "--memory", "8GiB", "-o", str(tmp_path / "my.yaml")])
    out = capsys.readouterr().out
    assert not stop.value.code and f"python train_ldm.py {tmp_path / 'my.yaml'}" in out
    assert set(yaml.safe_load((tmp_path / "my.yaml").read_text())) == {"extends", "clip", "vae", "ldm"}


@pytest.mark.parametrize("text, size", [("8GiB", 2**33), ("8g", 2**33), ("1.5 GB", 1.5 * 2**30), ("900MiB", 900 * MIB)])
def test_sizes_as_people_write_them(text, size):
    assert _bytes(text) == size


@pytest.mark.slow
def test_a_real_run_says_how_well_it_was_planned(tmp_path):
    changes = f"extends: {SMOKE}\ndata: {{cache_dir: {tmp_path}/cache}}\n"
    (tmp_path / "small.yaml").write_text(changes)
    write(tmp_path / "mine.yaml", tmp_path / "small.yaml", propose(tmp_path / "small.yaml", 4.0))
    out = train("vae", tmp_path / "mine.yaml", tmp_path, processes=0)
    assert "min that were planned" in out
    last = json.loads((tmp_path / "runs/mine/vae/log.jsonl").read_text().splitlines()[-1])
    assert 0.2 < last["minutes"] / last["planned_minutes"] < 4  # the load of the machine may change meanwhile
