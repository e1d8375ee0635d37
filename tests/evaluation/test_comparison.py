"""Verdicts on two models whose difference is known, and reports that cannot be compared."""

import json

import numpy as np
import pytest

from ldm.evaluation.comparison import SCORES, compare_scores, load_report, save_scores
from ldm.utils.errors import UserError

PLAN = {"samples": 9, "sets": 3, "seed": 0, "steps": None, "guidance": None}


def scores(share: float, error: float, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    layout = (rng.random(400) < share).astype(float)
    layout[::5] = np.nan
    return {
        "layout": {"layout": layout, "radical": np.full(400, np.nan)},
        "character": {"strokes_error": rng.gamma(2, error / 2, 400)},
    }


PROMPTS, LOWER = {"character": np.arange(400) % 100}, ["strokes_error"]


def test_the_better_model_is_named_whichever_way_a_measure_points():
    worse, better = scores(0.5, 4.0, 0), scores(0.9, 1.0, 1)
    found = compare_scores(worse, better, PROMPTS, LOWER)
    assert found["layout"]["layout"]["verdict"] == found["character"]["strokes_error"]["verdict"] == "B better at 95%"
    assert found["layout"]["layout"]["difference"]["n"] == 320  # nan is not asked for
    assert "radical" not in found["layout"]
    assert compare_scores(better, worse, PROMPTS, LOWER)["character"]["strokes_error"]["verdict"] == "A better at 95%"


def test_a_model_is_no_better_than_itself():
    same = scores(0.8, 2.0, 0)
    verdicts = {m["verdict"] for section in compare_scores(same, same, PROMPTS).values() for m in section.values()}
    assert verdicts == {"no difference seen"}


def test_scores_come_back_with_their_metrics(tmp_path):
    kept = scores(0.8, 2.0, 0)
    save_scores(kept, tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps({"plan": PLAN, "model": {"digest": "d"}}))
    found, metrics = load_report(tmp_path, PLAN)
    assert metrics["model"]["digest"] == "d" and found.keys() == kept.keys()
    for section, measures in kept.items():
        for name, values in measures.items():
            np.testing.assert_array_equal(found[section][name], values.astype(np.float32))


def test_a_report_by_another_plan_or_none_at_all_is_refused(tmp_path):
    save_scores(scores(0.8, 2.0, 0), tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps({"plan": PLAN | {"seed": 7}}))
    with pytest.raises(UserError, match="another plan .seed: 7 there, 0 here"):
        load_report(tmp_path, PLAN)
    (tmp_path / SCORES).write_bytes(b"PK but no archive")
    with pytest.raises(UserError, match="is no report"):
        load_report(tmp_path, PLAN)
    with pytest.raises(UserError, match="is no report"):
        load_report(tmp_path / "nowhere", PLAN)
