"""The report of coloured digits counts what it should."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import tiny_pipeline

from ldm.config.settings import DataOptions
from ldm.data.digits import GROUNDS, HELD_OUT, INKS, PAIRS, SLANT, THICKNESS, splits
from ldm.evaluation.digits import report as digits
from ldm.evaluation.options import EvaluationOptions
from ldm.utils.errors import UserError


@pytest.fixture(scope="module")
def data(glyph_cache):
    """The same few handwritings as in the tests of the data: one tracing for both."""
    return splits(DataOptions(source="digits", resolution=32, channels=3, cache_dir=glyph_cache, digits={"limit": 64}))


def test_the_plan_asks_for_every_pair_and_every_style_equally():
    asked = digits.prompt_sections(HELD_OUT, samples=16, seed=0)
    seen = Counter((one["digit"], one["ink"]) for one in asked["seen"])
    assert set(seen) == set(PAIRS) - set(HELD_OUT) and set(seen.values()) == {2}
    unseen = Counter((one["digit"], one["ink"]) for one in asked["heldout"])
    assert unseen == dict.fromkeys(HELD_OUT, 16)
    styles = Counter((one["thickness"], one["slant"], one["ground"]) for one in asked["seen_described"])
    assert len(styles) == len(THICKNESS) * len(SLANT) * len(GROUNDS) and len(set(styles.values())) == 1
    assert all((one["digit"], one["ink"]) in HELD_OUT for one in asked["heldout_described"])
    assert all((one["digit"], one["ink"]) not in HELD_OUT for one in asked["seen_described"])
    assert asked["seen"][0]["prompt"] == "an orange 0" and set(digits.prompt_sections((), 16, 0)) == {
        "seen",
        "seen_described",
    }


class Copier:
    """Stands for a model: answers each prompt with a real picture that fits it."""

    def __init__(self, data, wrong: bool = False):
        self.items = {}
        for part in data.values():
            for i, item in enumerate(part.items):
                self.items.setdefault((str(item.digit), item.ink), part.image(i))
        self.wrong, self.digest, self.defaults = wrong, "0", {"num_inference_steps": 1, "guidance_scale": 1.0}
        self.networks, self.image_shape = tiny_pipeline(channels=3).networks, (3, 32, 32)

    def __call__(self, prompts, **settings):
        words = [prompt.split(" on ")[0].split() for prompt in prompts]
        inks = {ink: ("blue" if self.wrong else ink) for ink in INKS}
        pictures = [self.items.get((w[-1], inks[w[-2]]), self.items["1", "blue"]) for w in words]
        return SimpleNamespace(images=np.stack(pictures) / 255.0)


@pytest.fixture
def judged(data, tmp_path, monkeypatch, glyph_cache):
    def run(wrong):
        monkeypatch.setattr(digits, "load_pipeline", lambda run, device=None: Copier(data, wrong))
        monkeypatch.setattr(digits, "real_digits", lambda *args: data["test"])
        options = EvaluationOptions(tmp_path / "report", samples=3, device="cpu", cache_dir=glyph_cache)
        return digits.evaluate_digits(tmp_path, options)

    return run


def test_a_model_that_obeys_is_told_from_one_that_draws_all_in_blue(judged, tmp_path, capsys):
    good = judged(wrong=False)["sections"]
    assert good["seen"]["both"]["share"] > 0.85 and good["heldout"]["ink"]["share"] > 0.9
    bad = judged(wrong=True)["sections"]
    assert bad["seen"]["ink"]["share"] < 0.2 and bad["seen"]["digit"]["share"] > 0.5
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["sections"] == bad
    assert (tmp_path / "report" / "heldout.png").is_file()
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<h3>") == 5 and page.count("data:image/png;base64,") == 4 and "http" not in page
    assert page.index("Is the digit right?") < page.index("data:image/png")
    printed = capsys.readouterr().out
    assert "heldout" in printed and "both" in printed


def test_grey_models_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "load_pipeline", lambda run, device=None: tiny_pipeline(channels=1))
    with pytest.raises(UserError, match="coloured digits have 3"):
        digits.evaluate_digits(tmp_path, EvaluationOptions(tmp_path, samples=3, device="cpu"))
