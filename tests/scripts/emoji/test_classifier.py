"""Training of the emoji classifier learns, and writes what can be read."""

import json

import numpy as np
import pytest
import torch

from ldm.utils.errors import UserError
from scripts.emoji.classifier import EmojiClassifier, as_input, augment, fit, main
from scripts.emoji.data import images_of, read_set, some
from tests.tiny_emoji import tiny_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return tiny_set(tmp_path_factory.mktemp("classifier"), patch)


def test_a_few_epochs_teach_the_network_what_it_is_shown(folder):
    lines: list[str] = []
    fit(read_set(folder), epochs=3, report=lines.append)
    losses = [float(line.split()[3]) for line in lines]
    assert len(lines) == 3 and losses[-1] < losses[0] - 0.1


def test_training_writes_a_classifier_that_can_be_read(folder, tmp_path, capsys):
    main([str(folder), "--output", str(tmp_path / "classifier"), "--epochs", "1"])
    classifier = EmojiClassifier(tmp_path / "classifier")
    assert (tmp_path / "classifier" / "model.safetensors").stat().st_size < 2**20
    assert classifier.card["groups"] == ["face", "flag", "food", "object", "plant", "symbol"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["group"]["n"] == 8
    styles, groups = classifier.predict(np.zeros((3, 16, 16, 3), np.uint8))
    assert len(styles) == len(groups) == 3 and set(styles) <= {"noto", "twemoji", "fluent", "openmoji"}


def test_augmentation_stays_on_white_and_in_range():
    x = as_input(np.full((5, 64, 64, 3), 255, np.uint8))
    assert (x == 1).all()
    moved = augment(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape and moved.max() <= 1 and moved.mean() > 0.95


def test_some_are_evenly_chosen_among_names_and_styles(folder):
    data = read_set(folder)
    few = some(data.splits["train"], 21)
    assert len(few) == 21 and {each.style for each in few} == set(data.styles) and some([], 5) == []
    assert some(data.splits["test"], 1000) == sorted(data.splits["test"], key=lambda each: (each.name, each.style))
    assert images_of(few, 16).shape == (21, 16, 16, 3)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is no emoji set .*build_emoji.py"):
        read_set(tmp_path)
    with pytest.raises(UserError, match="no emoji classifier in"):
        EmojiClassifier(tmp_path)
