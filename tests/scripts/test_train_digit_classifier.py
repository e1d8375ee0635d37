"""Training of the digit classifier learns, and writes what can be read."""

import json

import pytest

from ldm.config.settings import DataOptions
from ldm.data.digits import splits
from ldm.evaluation.digits.classifier import DigitClassifier
from scripts.train_digit_classifier import fit, main


@pytest.fixture(scope="module")
def data(glyph_cache):
    """The same few handwritings as in the tests of the data: one tracing for both."""
    return splits(DataOptions(source="digits", resolution=32, channels=3, cache_dir=glyph_cache, digits={"limit": 64}))


def test_a_few_epochs_teach_the_network_what_it_is_shown(data):
    lines = []
    fit(data["train"].writing, epochs=6, seed=0, report=lines.append)
    losses = [float(line.split()[3]) for line in lines]
    assert len(lines) == 6 and losses[-1] < losses[0]


def test_training_writes_a_judge_that_can_be_read(tmp_path, glyph_cache, capsys):
    main(["--output", str(tmp_path / "judge"), "--cache-dir", str(glyph_cache), "--epochs", "1", "--limit", "64"])
    judge = DigitClassifier(tmp_path / "judge")
    assert judge.card["trained_on"]["originals"] == 64
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["test"]["n"] == 16 * 8
