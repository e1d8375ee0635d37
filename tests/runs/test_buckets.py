"""Images of five aspect ratios through all three trainers: stopped and continued, by one process and by two."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from forked import world
from PIL import Image
from tiny_model import tiny_folder
from tiny_trainings import PARTS, assert_same_run, losses, settings_of, task_of

from ldm.data.buckets import buckets_of
from ldm.pipelines.loading import load_pipeline
from ldm.training.distributed import start_world
from ldm.training.trainer import Trainer
from ldm.utils import checkpoint_files as checkpoint

SIZES = [(16, 64), (24, 40), (32, 32), (40, 24), (64, 16)]  # the buckets of 32 pixels in steps of 8
IMAGES, STEPS = 300, 6


def settings(part, project, run):
    """Those of `tiny_trainings` for images in buckets, without dropout, whose masks differ between processes."""
    found = settings_of(part, project, run, num_steps=STEPS, batch_size=8, save_every=2)
    files = found.data.files.model_copy(update={"bucket_step": 8})
    changes = {"data": found.data.model_copy(update={"resolution": 32, "files": files})}
    if part == "ldm":
        changes["model"] = found.model.model_copy(update={"dropout": 0.0})
    if part == "vae":
        changes["loss"] = found.loss.model_copy(update={"adversarial": 0.0})
    return found.model_copy(update=changes)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Captioned random images, each twice as large as a bucket or a little off its shape, and a random model."""
    folder, rng = tmp_path_factory.mktemp("buckets"), np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(IMAGES):
        height, width = SIZES[i % 5]
        pixels = rng.integers(0, 256, (height, width), np.uint8).repeat(2, 0).repeat(2, 1)
        Image.fromarray(pixels[i % 3 :, i % 2 :]).save(folder / "pictures" / f"{i:03}.png")
        (folder / "pictures" / f"{i:03}.txt").write_text(f"picture {i} of {i % 5}")
    tiny_folder(folder / "model")
    return folder


def train(part, project, run, stop=STEPS):
    """Train, and leave after step `stop` as a signal would have it."""
    torch.set_num_threads(1)
    start_world()
    chosen = settings(part, project, run)
    trainer = Trainer(task_of(part, chosen, run), chosen, run)
    step = trainer._step

    def limited(*args):
        step(*args)
        if trainer.step == stop < STEPS:
            trainer.held.pending = 15

    trainer._step = limited
    trainer.fit()


def run(part, project, folder, size=1, stop=STEPS):
    """As `size` processes."""
    folder.parent.mkdir(exist_ok=True)
    work = partial(train, part, project, folder, stop)
    for child in world(work, folder.with_name(f"said-{folder.name}-{size}-{stop}"), size):
        assert child.wait() == (0 if stop == STEPS else 143), child.said()


@pytest.fixture(scope="module")
def whole(project):
    """The finished run of each part, by one process."""
    for part in PARTS:
        run(part, project, project / "one" / part)
    return project / "one"


@pytest.mark.parametrize("part", PARTS)
def test_a_run_in_buckets_that_was_stopped_is_the_same_to_the_last_bit(part, project, whole, tmp_path):
    run(part, project, tmp_path / part, stop=3)
    assert checkpoint.newest(tmp_path / part / "checkpoints").name == checkpoint.name(3)
    run(part, project, tmp_path / part)
    assert_same_run(whole / part, tmp_path / part)


@pytest.mark.parametrize("part", PARTS)
def test_two_processes_train_on_the_batches_of_one(part, project, whole, tmp_path):
    run(part, project, tmp_path / part, size=2)
    one, two = losses(whole / part), losses(tmp_path / part)
    assert len(one) == STEPS and one.keys() == two.keys()
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-4)


def test_the_model_generates_at_three_sizes(project, whole):
    log = [json.loads(line) for line in (whole / "ldm" / "log.jsonl").read_text().splitlines()]
    assert any("ema/loss" in entry and np.isfinite(entry["ema/gap"]) for entry in log)
    pipeline = load_pipeline(whole / "ldm")
    assert (pipeline.image_shape, pipeline.size_step) == ((1, 32, 32), 4)
    for height, width in ((32, 32), (16, 64), (40, 24)):
        (image,) = pipeline("picture 1", height=height, width=width, seed=0).images
        assert image.size == (width, height) and np.asarray(image).std() > 0


def test_the_images_lie_in_five_buckets(project):
    chosen = settings("ldm", project, project / "look")
    task = task_of("ldm", chosen, project / "look")
    train, held_out = task.components.train, task.components.validation
    assert len(train.data) + len(held_out.data) == IMAGES
    assert len(set(train.latent_sizes)) == 5 and train.latent_shape == (4, 16, 16)
    for k in range(5):
        assert (buckets_of(train.data) == k).sum() + (buckets_of(held_out.data) == k).sum() == IMAGES / 5
