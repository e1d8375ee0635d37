"""A resumed run is the run that was never stopped: bit for bit, in every trainer, whoever else was at work."""

import itertools
import json
import os
import shutil
import signal
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from forked import Child, world
from tiny_trainings import PARTS, WAYS, assert_same_run, losses, settings_of, task_of, train

from ldm.config import settings as config
from ldm.config.introspection import paths
from ldm.training.distributed import start_world
from ldm.training.resume_rules import CLASSES, class_of, compare
from ldm.training.trainer import Trainer
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.errors import UserError

CUT = 5  # killed in this step: the last checkpoint is of step 3, in the middle of an epoch of 4


def train_until_cut(part, project, run, **options):
    """As `train`, but killed in step `CUT`, between the parts of an accumulated batch where there are two."""
    start_world()
    settings = settings_of(part, project, run, **options)
    task = task_of(part, settings, run)
    seen = []

    def cut(*args, **values):
        seen.append(values["progress"])
        if seen.count((CUT - 1) / settings.train.num_steps) == settings.train.gradient_accumulation_steps:
            trainer.state.writer.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(*args, **values)

    trainer = Trainer(task, settings, run)
    forward, trainer.module.forward = trainer.module.forward, cut
    trainer.fit()


PLAIN = list(itertools.product(PARTS, (0, 2), (0.9, 0.0), (1, 2), ["plain"]))
OTHERS = [(part, workers, 0.9, size, "streamed") for part in PARTS for workers in (0, 2) for size in (1, 2)]
OTHERS += [("ldm", 0, decay, 2, way) for decay in (0.9, 0.0) for way in ("sharded", "sharded, asynchronous")]
OTHERS += [(part, 0, 0.9, size, "asynchronous") for part in PARTS for size in (1, 2)]
QUICK = [("clip", 0, 0.9, 1, "plain"), ("vae", 2, 0.9, 1, "plain"), ("ldm", 0, 0.9, 2, "plain")]
QUICK += [("ldm", 0, 0.9, 1, "streamed"), ("ldm", 0, 0.9, 2, "sharded, asynchronous")]


def pytest_generate_tests(metafunc):
    if "way" in metafunc.fixturenames:
        metafunc.parametrize("way", PLAIN + OTHERS if metafunc.config.getoption("--all-faults") else QUICK, ids=str)


def test_a_resumed_run_is_the_same_to_the_last_bit(way, project, tmp_path, survived):
    part, workers, decay, size, name = way
    options = {"num_workers": workers, "ema_decay": decay, "gradient_accumulation_steps": 1 if part == "clip" else 2}
    options |= WAYS[name][2]
    start = partial(world, size=size, environment=WAYS[name][1])
    for child in start(partial(train, part, project, tmp_path / "whole", **options), tmp_path / "out"):
        assert child.wait() == 0, child.said()
    cut = start(partial(train_until_cut, part, project, tmp_path / "cut", **options), tmp_path / "cut-out")
    assert -signal.SIGKILL in [child.wait() for child in cut]
    assert checkpoint.newest(tmp_path / "cut" / "checkpoints").name == checkpoint.name(3)
    again = start(partial(train, part, project, tmp_path / "cut", **options), tmp_path / "again")
    for child in again:
        assert child.wait() == 0, child.said()
    assert "resumed" in again[0].said()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    survived("resumed equal to the last bit", 1)


@pytest.mark.parametrize("part", PARTS)
def test_looking_at_a_training_does_not_change_it(part, project, undisturbed, tmp_path, survived):
    child = Child(partial(train, part, project, tmp_path / part, sample_every=1), tmp_path / "out")
    assert child.wait() == 0, child.said()
    assert len(list((tmp_path / part / "samples").glob("*.png"))) == 2 * 9 or part == "clip"
    newest = [checkpoint.newest(run / "checkpoints") for run in (undisturbed(part), tmp_path / part)]
    assert all(
        (newest[0] / f"{group}.safetensors").read_bytes() == (newest[1] / f"{group}.safetensors").read_bytes()
        for group in ("model", "ema", "optimizer")
    )
    assert losses(undisturbed(part)) == losses(tmp_path / part)


def train_and_tell(part, project, run, steps):
    """Train up to `steps`, noting which items each step saw."""
    start_world()
    settings = settings_of(part, project, run, save_every=1, num_steps=9, patience=0)
    task = task_of(part, settings, run)
    batch, rank = task.batch, os.environ.get("RANK", "0")

    def told(samples, rows):
        with open(f"{run}-items-{rank}-{steps}.jsonl", "a") as file:
            file.write(json.dumps([rows.step, rows.start, [[s.epoch, s.index] for s in samples]]) + "\n")
        return batch(samples, rows)

    task.batch = told
    trainer = Trainer(task, settings, run)
    step = trainer._step

    def limited(*args):
        step(*args)
        if trainer.step == steps:
            trainer.held.pending = signal.SIGTERM

    trainer._step = limited
    trainer.fit()


def items(folder, name):
    """step -> items of the global batch, in order."""
    found = defaultdict(list)
    for file in folder.glob(f"{name}-items-*.jsonl"):
        for line in file.read_text().splitlines():
            step, start, samples = json.loads(line)
            found[step].append((start, samples))
    return {step: [s for _, samples in sorted(parts) for s in samples] for step, parts in found.items()}


@pytest.mark.parametrize("part", PARTS)
def test_the_number_of_processes_may_change_underway(part, project, tmp_path, survived):
    """1 -> 2 -> 1: the same items in the same steps at the same learning rates."""
    for name, plan in (("constant", [(1, 99)]), ("changing", [(1, 3), (2, 6), (1, 99)])):
        for size, steps in plan:
            work = partial(train_and_tell, part, project, tmp_path / name, steps)
            codes = [child.wait() for child in world(work, tmp_path / f"out-{name}-{steps}", size)]
            assert codes == [0 if steps == 99 else 143] * size, (tmp_path / f"out-{name}-{steps}").read_text()
    assert items(tmp_path, "constant") == items(tmp_path, "changing") and len(items(tmp_path, "constant")) == 9
    rates = []
    for name in ("constant", "changing"):
        entries = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        rates.append({entry["step"]: entry["lr"] for entry in entries if "lr" in entry})
    assert rates[0] == rates[1] and len(rates[0]) == 9
    one, other = (losses(tmp_path / name) for name in ("constant", "changing"))
    np.testing.assert_array_equal([one[s] for s in (1, 2, 3)], [other[s] for s in (1, 2, 3)])  # before the change
    survived("change of the number of processes", 2)


# ---- what may have changed meanwhile -------------------------------------------------------------------------------


def test_every_setting_has_a_class_and_every_class_a_setting():
    known = {path for settings in config.PARTS.values() for path, _ in paths(settings)}
    assert [path for path in known if class_of(path) is None] == []
    assert [name for name in CLASSES if not any(f"{path}.".startswith(f"{name}.") for path in known)] == []


def test_an_unknown_setting_has_none():
    assert class_of("brand_new") is None and class_of("train.brand_new") is None and class_of("optim.new") is None


def origin(**identity):
    return {
        "settings": {"seed": 1, "model": {"width": 8}, "optim": {"lr": 0.1}, "train": {"log_every": 5}},
        "identity": {"data": "a" * 64, "vae": "b" * 64} | identity,
    }


def changed(path: str, value) -> dict:
    found = origin()
    owner = found["settings"]
    *way, last = path.split(".")
    for step in way:
        owner = owner[step]
    owner[last] = value
    return found


@pytest.mark.parametrize("path, was", [("seed", 1), ("model.width", 8)])
def test_a_change_of_what_is_trained_is_refused_unless_it_is_allowed(path, was):
    with pytest.raises(UserError, match=f"{path} was {was}, now 99.*--allow-changed {path}"):
        compare(origin(), changed(path, 99), (), "x")
    assert compare(origin(), changed(path, 99), [path], "x") == [f"{path} was {was}, now 99"]


def test_what_cannot_help_is_not_recommended():
    """Weights of another shape: --allow-changed would only fail later."""
    for allowed in ((), ("model.width",)):
        with pytest.raises(UserError, match="model.width was 8, now 99.*another --name or --output-dir$"):
            compare(origin(), changed("model.width", 99), allowed, "x", fits=False)


def test_a_change_of_how_is_noted_and_one_of_the_log_is_not():
    assert compare(origin(), changed("optim.lr", 0.2), (), "x") == ["optim.lr was 0.1, now 0.2"]
    assert compare(origin(), changed("train.log_every", 99), (), "x") == []


def test_other_data_or_parts_are_refused_by_their_digests():
    with pytest.raises(UserError, match="vae was bbbbbbbbbbbb, now cccccccccccc"):
        compare(origin(), origin(vae="c" * 64), (), "x")
    assert compare(origin(), origin(), (), "x") == []


@pytest.mark.parametrize(
    "then, now, said",
    [(1000, 1001, "data: 1,000 training images, now 1,001;"), (1000, 1000, "data: as many images, not the same;")],
)
def test_other_images_are_told_by_their_number(then, now, said):
    before, after = (origin(data=digest * 64) | {"images": n} for digest, n in (("a", then), ("c", now)))
    after["identity"]["vae"] = "c" * 64
    with pytest.raises(UserError, match=f"{said}.*--allow-changed data"):
        compare(before, after, (), "x")


def test_allowing_what_did_not_change_is_a_slip():
    with pytest.raises(UserError, match="--allow-changed sead: nothing of that name differs"):
        compare(origin(), changed("seed", 2), ["sead"], "x")


FIRST_FORMAT = Path(__file__).parents[1] / "fixtures" / "checkpoint-format-1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Checkpoints of step 4 and 8 of the run that the frozen one was taken from, made on this machine."""
    run = tmp_path_factory.mktemp("first-format") / "whole"
    assert trained_to_8(run).wait() == 0
    return run / "checkpoints"


def trained_to_8(run, resume="auto") -> Child:
    from tests.training.test_trainer import LineTask, settings

    return Child(lambda: Trainer(LineTask(), settings(num_steps=8), run).fit(resume), run.with_suffix(".out"))


def resumed_from(folder, run) -> dict[str, np.ndarray]:
    """All tensors at step 8."""
    child = trained_to_8(run, folder)
    assert child.wait() == 0, child.said()
    assert "older format" in child.said()
    return tensors_of(run / "checkpoints" / checkpoint.name(8))


def tensors_of(folder) -> dict[str, np.ndarray]:
    groups = checkpoint.load(folder)[0]
    return {f"{group}.{name}": value.numpy() for group in groups for name, value in groups[group].items()}


def test_a_checkpoint_of_the_first_format_is_read(whole, tmp_path):
    """Frozen as version 1 wrote it, on another CPU, whose roundings differ; only its seed can be compared."""
    ours, theirs = resumed_from(FIRST_FORMAT, tmp_path / "run"), tensors_of(whole / checkpoint.name(8))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():  # a step moves weights by 1e-2, roundings by 1e-7
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_training_goes_on_from_the_first_format_to_the_last_bit(whole, tmp_path):
    """This machine's own checkpoint, brought into the form of the frozen one."""
    old = tmp_path / "old"
    shutil.copytree(whole / checkpoint.name(4), old)
    shutil.copy(FIRST_FORMAT / "state.json", old)
    (old / checkpoint.MANIFEST).unlink()
    checkpoint._write_manifest(old)
    manifest = json.loads((old / checkpoint.MANIFEST).read_text())
    (old / checkpoint.MANIFEST).write_text(json.dumps(manifest | {"format": 1}))
    assert {name: value.shape for name, value in tensors_of(old).items()} == {
        name: value.shape for name, value in tensors_of(FIRST_FORMAT).items()
    }
    ours, theirs = resumed_from(old, tmp_path / "run"), tensors_of(whole / checkpoint.name(8))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
