"""A run trains its tokenizer once, and its batches hold the mixture's images with the mixture's captions."""

import numpy as np
import pytest

from ldm.config.settings import ClipModel, ClipSettings
from ldm.data import Splits
from ldm.training.task import BatchSlice, SampleRef
from ldm.training.tasks.clip import ClipTask, run_tokenizer

CAPTIONS = ["horizontal stacked glyph with the water radical", "vertical stacked glyph, meaning forest"] * 20


MODEL = ClipModel(
    vocab_size=600, context_length=16, width=32, layers=2, heads=2, vision_width=32, vision_layers=1, vision_heads=2,
    embed_dim=16,
)  # fmt: skip


class Captioned:
    """Twenty items with one of two captions."""

    def __len__(self):
        return 20

    def caption(self, i, rng):
        return CAPTIONS[i % 2]


def test_a_run_keeps_its_first_tokenizer(tmp_path):
    first = run_tokenizer(tmp_path, MODEL, Captioned(), 0)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    CAPTIONS.append("something else entirely " * 3)
    again = run_tokenizer(tmp_path, MODEL, Captioned(), 0)
    assert again.get_vocab() == first.get_vocab()


class Dark(Captioned):
    """Black images."""

    resolution, channels, has_captions, fingerprint, level = 16, 1, True, "dark", 0

    def image(self, i):
        return np.full((16, 16, 1), self.level, np.uint8)


class Light(Dark):
    """White images, with a caption of their own."""

    fingerprint, level = "light", 255

    def caption(self, i, rng):
        return "vertical"


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_synthetic_images_come_with_their_captions(share, tmp_path):
    model = MODEL.model_copy(update={"patch_size": 8})
    settings = ClipSettings(model=model, data={"resolution": 16, "mixture": {"contrastive": share}})
    task = ClipTask(settings, Splits(Dark(), Dark(), mixture=Light()), tmp_path)
    assert task.fingerprints["mixture"] == "light"
    batch = task.batch([SampleRef(i % 20, 0) for i in range(400)], BatchSlice(3, 0, 400, 400))
    light = batch["images"].flatten(1).amin(1) > 0.9
    assert light.float().mean() == pytest.approx(share, abs=0.07)
    only = batch["input_ids"][light]
    assert (only == only[:1]).all()
    assert not len(only) or not (batch["input_ids"][~light] == only[:1]).all(1).any()
