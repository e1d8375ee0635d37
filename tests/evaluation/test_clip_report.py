"""`ldm evaluate` of a run of `ldm train clip`: numbers of encoders whose answers are known, the page of a tiny run."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_trainings import train, write_project

from ldm.cli.evaluate import add_parser, run
from ldm.evaluation.clip_report import pairs_section, preferred
from ldm.models.caption_swaps import CaptionSwaps
from ldm.utils.errors import UserError

SLOTS = {name: ("colour", name) for name in ("red", "green", "blue")}


class Bars:
    """Images that are all of the grey level that stands for their caption's colour."""

    def __len__(self):
        return 30

    def image(self, i):
        return np.full((4, 4, 1), 100 * (i % 3), np.uint8)

    def caption(self, i, rng):
        return f"a {list(SLOTS)[i % 3]} bar"


def told(images, captions):
    """Features that are one-hot of the colour."""
    of_image = images.reshape(len(images), -1).mean(1).astype(int) // 100
    of_text = [list(SLOTS).index(caption.split()[1]) for caption in captions]
    return tuple(torch.nn.functional.one_hot(torch.tensor(np.array(x)), 3).float() for x in (of_image, of_text))


def test_images_prefer_their_caption_to_a_wrong_one():
    options = SimpleNamespace(samples=30, seed=0)
    found = pairs_section(told, Bars(), CaptionSwaps(SLOTS, []), options)
    assert found["n"] == 30 and found["captions"] == 3 and found["chance"]["text_to_image_recall@1"] == round(1 / 30, 4)
    assert found["one_phrase_replaced"]["share"] == 1 and found["recall"]["image_to_text_recall@10"] == 1
    own, wrong = found["example"]
    assert own.split()[1] != wrong.split()[1] and own.split()[2] == wrong.split()[2]


def test_an_encoder_that_does_not_read_prefers_nothing():
    x = torch.nn.functional.normalize(torch.randn(6, 4), dim=-1)
    assert not preferred(x, x, x).any()


def evaluated(*words):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return run(parser.parse_args(["evaluate", *map(str, words)]))


def test_a_finished_run_is_evaluated_by_its_own_command(tmp_path, capsys):
    project = write_project(tmp_path)
    train("clip", project, tmp_path / "clip")
    assert evaluated(tmp_path / "clip", "-o", tmp_path / "report", "--samples", 4) == 0
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["pairs"]["n"] == 4 and metrics["text"] == {} and metrics["pairs"]["one_phrase_replaced"]["n"] == 4
    page = (tmp_path / "report" / "index.html").read_text()
    assert "One phrase replaced" in page and "http" not in page
    said = capsys.readouterr().out
    assert "own caption preferred to one with a phrase replaced" in said and "chance 50%" in said and "{" not in said
    assert f"{tmp_path / 'report' / 'index.html'}: numbers in one file" in said
    with pytest.raises(UserError, match="is a run of `ldm train clip`"):
        evaluated(tmp_path / "clip", "-o", tmp_path / "report", "--quick")
