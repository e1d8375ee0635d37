"""Measures of emoji: the real images get what they should, and the whole runs on a tiny model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("skimage")

from ldm.models.identity_autoencoder import IdentityAutoencoder
from ldm.utils.errors import UserError
from scripts import evaluate_emoji
from scripts.emoji.classifier import EmojiNet
from scripts.emoji.data import images_of, read_set
from scripts.evaluate_emoji import PROMPTS, Request, autoencoder_section, colours_section, copies_section, named_right
from scripts.glyph_classifier.train import half_precision, write_classifier
from tests.tiny_emoji import tiny_set
from tests.tiny_model import tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return tiny_set(tmp_path_factory.mktemp("evaluate"), patch)


@pytest.fixture(scope="module")
def data(folder):
    return read_set(folder)


class Knowing:
    """A classifier that finds the real image most like the one it sees."""

    def __init__(self, data):
        self.emoji = data.everything
        self.images = images_of(self.emoji, 16).astype(int)

    def predict(self, images):
        own = [self.emoji[int(np.abs(self.images - image).sum((1, 2, 3)).argmin())] for image in images.astype(int)]
        return [each.style for each in own], [each.group for each in own]


def test_real_images_are_right_and_those_of_others_are_not(data):
    request = Request.of(data.splits["validation"])
    real, knowing = images_of(request.emoji, 16), Knowing(data)
    found = named_right(real, request, knowing)
    assert all(each["share"] == 1 for each in found.values()) and found["group"]["n"] == 8
    assert found["style"]["n"] + sum("style" not in prompt for prompt in request.prompts) == 8
    assert found["group_named"]["n"] == sum(
        f", {each.group}" in prompt for each, prompt in zip(request.emoji, request.prompts)
    )
    axes = images_of([next(each for each in request.emoji if each.name == "axe")] * 8, 16)
    assert named_right(axes, request, knowing)["group"]["share"] == 0.5  # the other half are tacos


def test_colours_of_real_images_are_right_in_pairs_seen_and_held_out(data):
    of_prompt = {each.captions[0]: each for each in data.everything}

    def generate(prompts, seed):
        return images_of([of_prompt[prompt] for prompt in prompts])

    found = colours_section(generate, data, [0, 1])
    assert found["seen"] == {"n": 144, "share": 1, "interval": found["seen"]["interval"]}
    assert found["held_out"]["n"] == 48 and found["held_out"]["share"] == 1 == found["real"]
    assert len(found["each_pair"]) == 24 and "blue heart" in found["held_out_pairs"]


def test_a_model_of_red_alone_is_right_in_one_colour_of_eight(data):
    red = images_of([next(each for each in data.everything if each.name == "red-heart")])
    found = colours_section(lambda prompts, seed: np.repeat(red, len(prompts), 0), data, [0])
    assert found["seen"]["share"] == round(3 / 18, 4) and found["held_out"]["share"] == 0
    assert found["each_pair"]["red circle"] == 1 and found["each_pair"]["blue circle"] == 0


def test_pixels_themselves_lose_nothing(data):
    found = autoencoder_section(IdentityAutoencoder(3), data, 64)
    assert found["psnr"]["value"] == 99 and found["psnr"]["n"] == 32
    assert found["worst_swatch"] == 0 and found["swatches_within"] == "12 of 12 within 6"


def test_training_images_are_copies_and_held_out_ones_are_not(data):
    from ldm.evaluation.feature_extractors import FeatureExtractor
    from ldm.evaluation.images.report import coarse_colours

    extractor = FeatureExtractor("colours", "", coarse_colours)
    train, real = (images_of(data.splits[split], 16) for split in ("train", "validation"))
    assert copies_section(train[:10], real, data, extractor)["near_copies"]["share"] == 1
    assert copies_section(real, real, data, extractor)["near_copies"]["share"] == 0


def test_words_are_a_fraction_of_their_ceiling(data):
    """The judge knows half of the real images; the model makes a quarter of what it should."""
    prompts = [f"number {i}" for i in range(8)]
    real, generated = (np.zeros((8, 4, 4, 3), np.uint8) for _ in range(2))
    real[:, 0, 0, 0] = [0, 1, 2, 3, 0, 0, 0, 0]
    generated[:, 0, 0, 0] = [0, 1, 7, 7, 7, 7, 7, 0]

    def clip(images, captions):
        told = torch.eye(8)[[int(caption.split()[1]) for caption in captions]]
        return torch.eye(8)[images[:, 0, 0, 0].astype(int)], told

    found = evaluate_emoji.words(generated, real, prompts, clip)
    assert found["ceiling"] == 0.5 and found["share"] == 0.25 and found["of_ceiling"] == 0.5
    assert evaluate_emoji.words(generated, real, prompts, None) is None


def untrained(data, folder):
    """A classifier that knows nothing, on disk."""
    _, weights = half_precision(EmojiNet(len(data.styles), len(data.groups)))
    known = {"styles": data.styles, "groups": data.groups, "held_out_names": {"style": {}, "group": {}}}
    write_classifier(folder, weights, known)


def test_the_whole_runs_on_an_exported_model(folder, tmp_path, capsys):
    model = tiny_folder(tmp_path / "model", channels=3)
    untrained(read_set(folder), tmp_path / "classifier")
    words = [str(model), str(folder), "--classifier", str(tmp_path / "classifier"), "-o", str(tmp_path / "report")]
    evaluate_emoji.main([*words, "--seeds", "5", "--samples", "6", "--steps", "1"])
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["words"] is None and metrics["colours"]["seen"]["n"] == 72 and metrics["grid"] == list(PROMPTS)
    assert metrics["held_out_names"]["group"]["n"] == 6 and metrics["copies"]["features"].startswith("colours")
    assert metrics["settings"] == {"seeds": [5], "samples": 6, "steps": 1, "guidance": None, "interval": None}
    with Image.open(tmp_path / "report" / "grid.png") as grid:
        assert grid.size == (4 * (128 + 4), 12 * (128 + 4))
    assert '"near_copies"' in capsys.readouterr().out


def test_a_model_of_grey_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="images of 1 x 16 x 16: the emoji are RGB"):
        evaluate_emoji.open_model(tiny_folder(tmp_path / "grey"), None)
