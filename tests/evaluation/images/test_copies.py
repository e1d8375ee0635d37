"""Copies planted among new images are found; blurred, flat and held-out images are not."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ldm.config.settings import LdmSettings
from ldm.data import Splits
from ldm.evaluation import training_hook
from ldm.evaluation.images.copies import CopyDetector

SIDE = 32


class Blobs:
    """Images of a few coloured boxes at random, captioned by their number."""

    has_captions, resolution, channels = True, SIDE, 3

    def __init__(self, seed, count):
        rng = np.random.default_rng(seed)
        self.images = np.full((count, SIDE, SIDE, 3), 255, np.uint8)
        for image in self.images:
            for _ in range(4):
                y, x = rng.integers(0, SIDE - 8, 2)
                image[y : y + 8, x : x + 8] = rng.integers(0, 256, 3)
        self.ids = [f"{seed}/{i}" for i in range(count)]

    def __len__(self):
        return len(self.images)

    def image(self, i):
        return self.images[i]

    def caption(self, i, rng):
        return str(i)


TRAIN, HELD_OUT, NEW = Blobs(0, 300), Blobs(1, 40), Blobs(2, 50)


@pytest.fixture(scope="module")
def detector():
    return CopyDetector(TRAIN, HELD_OUT)


def test_copies_are_found_also_noisy_ones(detector):
    copies = TRAIN.images[:20]
    noisy = (copies + np.random.default_rng(0).normal(0, 8, copies.shape)).clip(0, 255).astype(np.uint8)
    assert detector(copies).all() and detector(noisy).all()


def test_new_images_are_not_called_copies_more_often_than_held_out_ones(detector):
    assert not detector(HELD_OUT.images).any()
    assert detector(NEW.images).mean() <= 0.1


def test_blurred_and_flat_images_are_no_copies(detector):
    blurred = [np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(8))) for x in NEW.images[:20]]
    flat = np.full((3, SIDE, SIDE, 3), 200, np.uint8)
    assert not detector(np.stack(blurred)).any() and not detector(flat).any()


def settings(**train):
    return LdmSettings(data={"source": "somewhere", "channels": 3}, train=train)


def test_the_hook_counts_copies_among_the_images_of_a_pipeline():
    answers = iter([TRAIN.images, NEW.images])

    def pipeline(prompts, generator, **options):
        assert options["num_inference_steps"] == training_hook.COPY_STEPS
        return SimpleNamespace(images=next(answers)[: len(prompts)] / 255)

    count = training_hook.copy_hook(settings(), Splits(TRAIN, HELD_OUT))
    assert count(pipeline) == 1.0 and count(pipeline) <= 1 / training_hook.COPIES


def test_the_hook_is_left_out_where_nobody_asks_or_too_little_is_held_out():
    splits = Splits(TRAIN, HELD_OUT)
    assert training_hook.copy_hook(settings(max_copies=1.0), splits) is None
    assert training_hook.copy_hook(settings(keep_best=False), splits) is None
    assert training_hook.copy_hook(settings(), Splits(TRAIN, Blobs(1, 19))) is None
