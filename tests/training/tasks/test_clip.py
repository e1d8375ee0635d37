"""A run trains its tokenizer once, and its batches hold the mixture's images with the mixture's captions."""

import math

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


class Phrased(Dark):
    """Captions that differ in one word, and its slot."""

    caption_slots = {name: ("colour", name) for name in ("red", "green", "blue")}

    def caption(self, i, rng):
        return f"a {list(self.caption_slots)[i % 3]} bar"


def wrong_of(tmp_path, data, rows, count=2):
    settings = ClipSettings(model=MODEL.model_copy(update={"patch_size": 8}), data={"resolution": 16})
    settings = settings.model_copy(update={"loss": settings.loss.model_copy(update={"hard_negatives": count})})
    task = ClipTask(settings, Splits(data, data), tmp_path)
    batch = task.batch([SampleRef(i % 20, 0) for i in range(rows.start, rows.stop)], rows)
    return task, batch


@pytest.mark.parametrize("data", [Phrased(), Dark()])
def test_hard_negatives_are_wrong_and_of_their_position_alone(tmp_path, data):
    task, batch = wrong_of(tmp_path, data, BatchSlice(5, 0, 8, 8))
    assert batch["negative_ids"].shape == (16, MODEL.context_length)
    own = batch["input_ids"].repeat_interleave(2, 0)
    assert (batch["negative_ids"] != own).any(1).all()
    _, half = wrong_of(tmp_path, data, BatchSlice(5, 4, 8, 8))
    assert (half["negative_ids"] == batch["negative_ids"][8:]).all()
    loss, _ = task.module(**batch, progress=0.0)
    loss.backward()
    without = {name: value for name, value in batch.items() if name != "negative_ids"}
    assert loss > task.module(**without, progress=0.0)[0]


def test_without_hard_negatives_a_batch_is_as_before(tmp_path):
    assert "negative_ids" not in wrong_of(tmp_path, Phrased(), BatchSlice(5, 0, 8, 8), count=0)[1]


def test_the_validation_loss_is_one_minus_the_mean_recall(tmp_path):
    settings = ClipSettings(model=MODEL.model_copy(update={"patch_size": 8}), data={"resolution": 16})
    task = ClipTask(settings, Splits(Dark(), Dark()), tmp_path)
    found = task.validate()
    loss = found["loss"]
    recalls = task.report(tmp_path, "x").values()
    assert 0 < loss < 1 and loss == pytest.approx(1 - sum(recalls) / 6)
    assert found == {"loss": loss, "error": pytest.approx(math.sqrt(loss * (1 - loss) / len(Dark())))}
