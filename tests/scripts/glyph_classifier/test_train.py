"""Training of the glyph classifier learns what it should."""

import numpy as np
import pytest
import torch
from glyph_bars import bars
from safetensors.torch import load

from ldm.evaluation.glyphs.classifier import GlyphNet
from ldm.utils.errors import UserError
from scripts.glyph_classifier import data as training_data
from scripts.glyph_classifier import train as training
from scripts.glyph_classifier.accuracy import accuracy


def test_transposing_twice_is_nothing():
    assert all(training_data.TRANSPOSED[training_data.TRANSPOSED[name]] == name for name in training_data.TRANSPOSED)


def test_balance_draws_a_class_of_m_in_proportion_to_its_root():
    weights = training_data.draw_weights(["a"] * 16 + ["b"] * 4 + ["c"], balance=0.5)
    assert weights.sum() == pytest.approx(1)
    totals = [weights[:16].sum(), weights[16:20].sum(), weights[20]]
    assert totals == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_augmentation_is_repeatable_and_stays_ink():
    ink = torch.rand(4, 1, 64, 64)
    first, second = (training_data.augment(ink, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, ink)
    assert first.shape == ink.shape and first.min() >= 0 and first.max() <= 1


def test_training_learns_bars_and_survives_half_precision():
    glyphs, names, components = bars(64), ["horizontal", "vertical"], ["日", "忄", "水"]
    mixture = training_data.Mixture(batch_size=32, transposed=0.2, recombined=0)
    options = training.Options(steps=40, width=8, ema_decay=0.5, lr=5e-3, mixture=mixture)
    net, steps = training.fit(glyphs, names, components, options, report=lambda line: None)
    rounded, data = training.half_precision(net)
    report = accuracy(rounded, glyphs, names, [61, 85], components, threshold=0.5)
    assert steps == 40 and len(data) < 2**21
    assert report["layout"] == 1 and report["layout_per_class"]["vertical"] == {"glyphs": 32, "accuracy": 1}
    assert report["radical_per_class"]["85"] == {"glyphs": 32, "accuracy": 1}
    assert report["components"] == {"precision": 1, "recall": 1, "f1": 1, "all_right": 1}
    assert report["radical_among_components"] == {"glyphs": 64, "accuracy": 1}


def test_training_ends_when_its_time_is_over_and_resumes_from_weights(tmp_path):
    mixture = training_data.Mixture(batch_size=8, recombined=0.5)
    options = training.Options(steps=500, width=8, mixture=mixture, seconds=1e-3, keep=tmp_path / "w", keep_every=1)
    net, steps = training.fit(
        bars(16), ["horizontal", "vertical"], ["日", "忄", "水"], options, report=lambda line: None
    )
    again = training.new_net(2, 5, training.Options(width=8, start=options.keep))
    assert steps == 1
    torch.testing.assert_close(again.radical.weight, net.radical.weight, atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="no weights to start from"):
        training.new_net(2, 3, training.Options(start=tmp_path / "missing"))


def test_the_learning_rate_rises_once_and_falls_to_nothing():
    rates = [training.cycle(done) for done in np.linspace(0, 1, 201)]
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(1) and rates[-1] == pytest.approx(0) and 0 < rates[0] < 0.1
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()


def test_half_precision_file_loads_exactly(tmp_path):
    net, data = training.half_precision(GlyphNet(3, 5, width=8).eval())
    other = GlyphNet(3, 5, width=8).eval()
    other.load_state_dict({k: v.float() for k, v in load(data).items()})
    x = torch.rand(2, 1, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(net(x), other(x), strict=True))
