"""Readings of text encoders whose states are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm.evaluation.glyphs.text_probe import probe, read


class Words:
    """A tokenizer that gives each word of a prompt a number of its own."""

    def __init__(self):
        self.numbers: dict[str, int] = {}

    def __call__(self, prompts, **_):
        rows = [[self.numbers.setdefault(word, len(self.numbers) + 1) for word in text.split()] for text in prompts]
        return SimpleNamespace(input_ids=torch.tensor([row + [0] * (12 - len(row)) for row in rows]))


class Bag:
    """An encoder whose states are how often each word is there: everything can be read from them."""

    def __init__(self, blind_to=()):
        self.blind_to = blind_to

    def __call__(self, input_ids):
        counts = torch.nn.functional.one_hot(input_ids, 400).sum(1).float()
        counts[:, 0] = 0
        counts[:, list(self.blind_to)] = 0
        return SimpleNamespace(last_hidden_state=counts[:, None])


def test_a_bag_of_words_is_read_whole():
    found = probe(Bag(), Words())
    assert found.radical > 0.95 and found.layout == 1


def test_an_encoder_that_does_not_see_radicals_reads_none():
    words = Words()
    probe(Bag(), words)
    said = {"glyph", "stacked", "with", "the", "radical", "horizontal", "vertical", "enclosed", "from", "lower", "left"}
    found = probe(Bag([number for word, number in words.numbers.items() if word not in said]), words)
    assert found.radical < 0.1 and found.nearest_radical < 0.1 and found.layout == 1


def test_a_linear_map_reads_a_linear_code():
    rng = np.random.default_rng(0)
    code = torch.from_numpy(rng.normal(size=(5, 20)))
    labels = rng.integers(5, size=200)
    states = code[labels] + 0.05 * torch.from_numpy(rng.normal(size=(200, 20)))
    assert (read(states[:150], labels[:150], states[150:]) == labels[150:]).all()
    other = torch.from_numpy(rng.normal(size=(50, 20)))
    assert np.mean(read(states[:150], labels[:150], other) == labels[150:]) == pytest.approx(0.2, abs=0.2)
