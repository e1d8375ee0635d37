"""`ldm plan`: known answers, files and flags that the trainers take, and one real run against its plan."""

import json
import math
import re

import pytest
import torch
import yaml
from commands import train

from ldm.apps import budget
from ldm.apps.budget import LEAST, MIN_STEPS, SHARES, SLACK, TARGET, overhead_seconds, propose
from ldm.cli import main as cli
from ldm.cli.plan import bytes_of, flags, write
from ldm.config.loading import load
from ldm.config.overrides import parse_overrides
from ldm.config.yaml_io import dump
from ldm.training.cost_estimate import CostCount, Forecast, Speed
from ldm.utils.assets import shipped_configs
from ldm.utils.errors import UserError

SMOKE = shipped_configs() / "smoke.yaml"
GLYPHS = shipped_configs() / "glyphs-cpu.yaml"
MIB = 2**20


def forecast(part, settings, config=None, timed=True, cost=None) -> Forecast:
    """A device that takes 2 ms an image at a width of 64, more in proportion to the weights; an image holds 1 MiB."""
    wide = budget.width_of(settings) / 64 if part != "ldm" else settings.model.block_out_channels[0] / 64
    size = round(9.4e6 * wide**2) if part == "ldm" else 1000  # 5.3 M at 48
    local = settings.train.batch_size // settings.train.gradient_accumulation_steps
    speed = Speed(SPEED[part] / wide**2, 0.0)
    return Forecast(
        CostCount(size, size, 1, round(MIB * wide)), speed, 1, local, 20 * MIB, "", torch.device("cpu"), None
    )


SPEED = {"clip": 500.0, "vae": 500.0, "ldm": 500.0}  # images a second at a width of 64


@pytest.fixture(autouse=True)
def a_known_device(monkeypatch, request):
    if "slow" not in request.keywords:
        monkeypatch.setattr(budget, "forecast", forecast)
        monkeypatch.setattr(budget, "program_memory", lambda: 100 * MIB)


def test_every_part_fits_its_time_and_sees_enough():
    found = propose(GLYPHS, 240.0, 2**40)
    assert [one.part for one in found] == ["clip", "vae", "ldm"]
    whole = SLACK * 60 * 240
    assert sum(one.seconds for one in found) <= whole
    for one in found:
        assert one.images >= one.target >= TARGET[one.part]
        assert one.seconds <= SHARES.get(one.part, 1) * whole
        assert one.settings.train.planned_minutes == pytest.approx(one.seconds / 60, abs=0.01)
    step = found[-1].forecast.step_seconds(found[-1].settings.train.batch_size)
    assert whole - sum(one.seconds for one in found) < step  # the U-Net has the rest


def _width(one) -> int:
    return one.settings.model.block_out_channels[0]


def test_more_minutes_make_a_wider_unet_that_sees_enough_at_its_width():
    widths = []
    for minutes in (15, 60, 240, 960, 3840):
        unet = propose(GLYPHS, minutes, 2**40)[-1]
        widths.append(_width(unet))
        weights = unet.forecast.cost.exported / budget.REFERENCE
        assert unet.images >= TARGET["ldm"] * max(0.5, weights, weights**2) or _width(unet) == 16
    assert widths == sorted(widths) and widths[0] < widths[-1]
    assert all(width % 16 == 0 for width in widths)  # norms have groups of 16 there


@pytest.mark.parametrize("slow", ["clip", "vae", "ldm"])
def test_a_slow_stage_is_narrowed_and_never_sees_too_few_images(slow, monkeypatch):
    monkeypatch.setitem(SPEED, slow, 4.0 if slow == "ldm" else 12.0)
    found = {one.part: one for one in propose(GLYPHS, 180, 2**40)}
    assert all(one.images >= LEAST[part] for part, one in found.items())
    assert budget.width_of(found[slow].settings) < budget.width_of(load(slow, GLYPHS))
    assert sum(one.seconds for one in found.values()) <= SLACK * 60 * 180
    assert all(
        budget.width_of(found[part].settings) >= budget.width_of(load(part, GLYPHS))
        for part in {"clip", "vae"} - {slow}
    )


@pytest.mark.parametrize("slow", ["clip", "vae", "ldm"])
@pytest.mark.parametrize("minutes", [1, 10])
def test_the_impossible_is_one_line_that_says_how_many_minutes_would_do(slow, minutes, monkeypatch):
    monkeypatch.setitem(SPEED, slow, 0.2)
    with pytest.raises(UserError, match=f"{slow}: too little time.*lower data.resolution") as said:
        propose(GLYPHS, minutes, 2**40)
    enough = int(re.search(r"--minutes (\d+)", str(said.value))[1])
    found = propose(GLYPHS, enough, 2**40)
    assert all(one.images >= LEAST[one.part] for one in found)


def test_an_easy_stage_leaves_its_time_to_the_unet(monkeypatch):
    monkeypatch.setitem(SPEED, "clip", 1e6)
    found = propose(GLYPHS, 240, 2**40)
    assert found[0].seconds < 60 and sum(one.seconds for one in found) > 0.99 * SLACK * 60 * 240


def test_what_the_user_set_stays(tmp_path):
    (tmp_path / "own.yaml").write_text(f"extends: {GLYPHS}\nvae: {{train: {{sample_every: 0}}}}\n")
    keep = ["clip.model.width", "ldm.model.block_out_channels", "vae.train.num_steps", "optim.lr", "train.batch_size"]
    clip, vae, ldm = propose(tmp_path / "own.yaml", 10, 2**40, keep)
    assert "width" not in clip.changes["model"] and "model" not in ldm.changes
    assert vae.settings.train.sample_every == 0 and vae.steps == load("vae", GLYPHS).train.num_steps
    assert all(
        "lr" not in one.changes["optim"] and "batch_size" not in one.changes["train"] for one in (clip, vae, ldm)
    )


def test_each_width_is_measured_once_and_said(monkeypatch):
    lines, asked = [], []
    counting = lambda *words, timed=True, **more: (asked.append(timed), forecast(*words, **more))[1]  # noqa: E731
    monkeypatch.setattr(budget, "forecast", counting)
    propose(GLYPHS, 240, 2**40, say=lines.append)
    assert len(lines) == len(set(lines)) == sum(asked) <= 9
    assert all("images/s" in line for line in lines)


def test_in_little_time_the_batch_is_smaller_and_so_is_the_learning_rate(monkeypatch):
    monkeypatch.setitem(SPEED, "ldm", 50.0)
    unet = propose(GLYPHS, 8, 2**40)[-1]
    original = load("ldm", GLYPHS)
    share = unet.settings.train.batch_size / original.train.batch_size
    assert share < 1 and unet.settings.optim.lr == pytest.approx(original.optim.lr * math.sqrt(share), rel=0.02)
    assert unet.steps >= MIN_STEPS["ldm"] or unet.settings.train.batch_size < 2 * budget.MIN_BATCH["ldm"]
    assert unet.settings.train.ema_decay <= 1 - 10 / max(20, unet.steps) + 1e-4


def test_little_memory_splits_the_batch_of_all_but_clip():
    clip, vae, ldm = propose(GLYPHS, 240.0, (100 + 20 + 14 * 1.4) * MIB)
    assert clip.settings.train.batch_size < 16 and clip.settings.train.gradient_accumulation_steps == 1
    assert ldm.settings.train.gradient_accumulation_steps > 1
    assert all(one.forecast.activation_bytes <= 14 * 1.4 * MIB for one in (clip, vae, ldm))
    assert max(one.memory for one in (clip, vae, ldm)) <= 139.6 * MIB


def test_what_does_not_fit_is_one_line():
    with pytest.raises(UserError, match="clip: one image does not fit into 101 MiB: give more --memory"):
        propose(GLYPHS, 60, 101 * MIB)


def test_parts_that_are_there_already_are_not_planned(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"extends: {GLYPHS}\nldm: {{vae: some/vae, text: {{source: some/clip}}}}\n")
    (only,) = propose(tmp_path / "mine.yaml", 30, 2**40)
    assert only.part == "ldm" and only.seconds > 0.99 * SLACK * 30 * 60


def test_reports_cost_what_they_draw():
    settings = load("ldm", SMOKE)
    few = overhead_seconds("ldm", settings, forecast("ldm", settings), None)
    sampling = settings.sampling.model_copy(update={"num_inference_steps": 8})  # it had 4
    more = overhead_seconds("ldm", settings.model_copy(update={"sampling": sampling}), forecast("ldm", settings), None)
    pictures = 2 * 2 + 40
    assert more - few == pytest.approx(4 * pictures * 4 * 2 * _wide(settings) ** 2 / SPEED["ldm"] / 3)


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
    assert not stop.value.code and f"ldm train ldm {tmp_path / 'my.yaml'}" in out
    assert set(yaml.safe_load((tmp_path / "my.yaml").read_text())) == {"extends", "clip", "vae", "ldm"}


@pytest.mark.parametrize("text, size", [("8GiB", 2**33), ("8g", 2**33), ("1.5 GB", 1.5 * 2**30), ("900MiB", 900 * MIB)])
def test_sizes_as_people_write_them(text, size):
    assert bytes_of(text) == size


@pytest.mark.slow
def test_a_real_run_says_how_well_it_was_planned(tmp_path):
    changes = f"extends: {SMOKE}\ndata: {{cache_dir: {tmp_path}/cache}}\n"
    (tmp_path / "small.yaml").write_text(changes)
    write(tmp_path / "mine.yaml", tmp_path / "small.yaml", propose(tmp_path / "small.yaml", 4.0))
    out = train("vae", tmp_path / "mine.yaml", tmp_path, processes=0)
    assert "that were planned" in out
    last = json.loads((tmp_path / "runs/mine/vae/log.jsonl").read_text().splitlines()[-1])
    assert 0.2 < last["minutes"] / last["planned_minutes"] < 4  # the load of the machine may change meanwhile


def test_the_shape_of_a_fine_tuned_autoencoder_is_not_changed(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(dump({"extends": str(GLYPHS), "vae": {"start": {"model": "glyphs"}}}))
    vae = propose(config, 240.0, 2**40)[1]
    assert vae.part == "vae" and "model" not in vae.changes and vae.images >= TARGET["vae"]
    assert budget.shape_text(vae.settings) == "of glyphs"


def test_validations_of_own_images_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "count_samples", lambda options: 1000)
    for part in ("clip", "vae", "ldm"):
        own = load(part, GLYPHS, {"data": {"source": str(tmp_path)}})
        off = own.model_copy(update={"train": own.train.model_copy(update={"keep_best": False})})
        with_, without = (overhead_seconds(part, one, forecast(part, one), None) for one in (own, off))
        assert with_ > without
