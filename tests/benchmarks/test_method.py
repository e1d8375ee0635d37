"""Time to quality: clocks that stand still, and lower bounds of a peer that was stopped."""

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def module(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(FOLDER))
    yield argparse.Namespace(quality=module("time_to_quality"))
    sys.path.remove(str(FOLDER))


def args(bench_module, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark", "-o", str(tmp_path)])
    return bench_module.arguments()


def test_the_clock_stands_still_while_pictures_are_judged(bench, tmp_path, monkeypatch):
    chosen = args(bench.quality, tmp_path, monkeypatch)
    race = bench.quality.Race(chosen, limit=60.0)
    shares = iter([{"horizontal": 0.9, "vertical": 0.3}, {"horizontal": 0.9, "vertical": 0.9}] * 2)

    def judged(pipeline, each, seed):
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        return next(shares), None

    monkeypatch.setattr(race, "_judged", judged)
    monkeypatch.setattr(bench.quality, "distance", lambda images, args: {"fd": 1.0})
    race.start_clock()
    race.look(0, lambda: None)
    race.look(40, lambda: None)  # one layout is not enough
    race.look(41, lambda: None)  # too early
    race.look(80, lambda: None)  # enough in the small sample and not in the large one
    assert [row["step"] for row in race.found] == [40, 80] and race.reached is None and race.seconds < 0.1
    shares = iter([{"horizontal": 0.8, "vertical": 0.8}] * 2)
    with pytest.raises(bench.quality.Finished):
        race.look(400, lambda: None)
    assert race.reached["step"] == 400 and race.reached["fd"] == 1.0


def test_a_peer_that_was_stopped_gives_a_lower_bound(bench, tmp_path, monkeypatch, capsys):
    chosen = args(bench.quality, tmp_path, monkeypatch)
    last = {"step": 9, "seconds": 5.0, "horizontal": 0.5, "vertical": 0.5}
    rows = {
        "ours": {"seconds": 10.0, "reached": last | {"fd": 100.0, "kid": 0.1, "floor_fd": 9.0}},
        "peer": {"seconds": 40.0, "reached": None},
    }
    for seed in (0, 1):
        (tmp_path / f"seed-{seed}").mkdir()
        for name, row in rows.items():
            whole = row | {"looks": [last], "images_per_second": 1.0}
            (tmp_path / f"seed-{seed}" / f"{name}.json").write_text(json.dumps(whole))
    bench.quality.report(chosen)
    out = capsys.readouterr().out
    assert "at least 4.00 (4.00 to 4.00) times sooner" in out and "> 40" in out
    assert len(json.loads((tmp_path / "time_to_quality.json").read_text())["seeds"]) == 2
