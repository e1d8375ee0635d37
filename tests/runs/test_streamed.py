"""All stages are trained on shards, in one process and in two, through a signal, to the same numbers."""

import signal
from functools import partial

import numpy as np
import pytest
import torch
from forked import until, world
from packed import write_shards
from tiny_model import tiny_folder
from tiny_trainings import assert_same_run, losses, settings_of

from ldm.cli.train_stage import fit
from ldm.training.distributed import end_world, start_world
from ldm.training.world import together

pytestmark = pytest.mark.slow


def train(part: str, project, run, **options) -> None:
    torch.set_num_threads(1)
    settings = settings_of(part, project, run, **options)
    shards = {"source": str(project / "shards" / "part-*.tar"), "shards": {"lanes": 3, "window": 10}}
    data = settings.data.model_validate(settings.data.model_dump() | shards)
    changes: dict = {"data": data}
    if part == "ldm":  # dropout would be drawn by each process
        changes |= {"cache_latents": False, "model": settings.model.model_copy(update={"dropout": 0.0})}
    start_world()
    with together():
        fit(part, settings.model_copy(update=changes))
    end_world()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    write_shards(folder / "shards")
    tiny_folder(folder / "model")
    return folder


@pytest.mark.parametrize("part", ["clip", "vae", "ldm"])
def test_two_processes_train_as_one_and_go_on_after_a_signal(part, project, tmp_path):
    for size in (1, 2):
        work = partial(train, part, project, tmp_path / f"run{size}", num_workers=size)
        for child in world(work, tmp_path / f"said{size}", size):
            assert child.wait() == 0, child.said()
    one, two = (losses(tmp_path / f"run{size}") for size in (1, 2))
    assert list(one) == list(two) == list(range(1, 9))
    alike = {"clip": 8, "vae": 3, "ldm": 8}[part]  # until a discriminator joins
    np.testing.assert_allclose([*two.values()][:alike], [*one.values()][:alike], rtol=1e-4)
    work = partial(train, part, project, tmp_path / "stopped", num_workers=1)
    (child,) = world(work, tmp_path / "said", 1)
    until(lambda: (tmp_path / "stopped" / "log.jsonl").exists() and len(losses(tmp_path / "stopped")) > 2)
    child.kill(signal.SIGTERM)
    assert child.wait() in (143, 0), child.said()
    (child,) = world(work, tmp_path / "again", 1)
    assert child.wait() == 0, child.said()
    assert_same_run(tmp_path / "run1", tmp_path / "stopped")
