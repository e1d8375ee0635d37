"""SIGTERM or Ctrl-C in any phase: one checkpoint of the step at hand, the code that says so, and a run that goes on."""

import itertools
import os
import signal
import time
from functools import partial

import pytest
from forked import Child, until, world
from tiny_trainings import WAYS, assert_same_run, losses, marks, patience, settings_of, task_of, train

import ldm.training.latent_cache
from ldm.training.distributed import start_world
from ldm.training.trainer import Trainer
from ldm.utils import checkpoint_files as checkpoint

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
PHASES = ("first step", "training", "evaluation", "cache build", "saving", "finishing")
AT = {"first step": 0, "training": 4, "evaluation": 3, "saving": 3}  # steps done when the phase comes
LONG = 1200.0  # seconds, which nobody waits: `held_up` says who did
OVER = "-over"


def linger(mark, over=lambda: False) -> None:
    """Say that the phase has come, and stay in it until `over`."""
    mark.touch()
    end = time.monotonic() + LONG
    while not over() and mark.exists():
        if time.monotonic() > end:
            return mark.with_name(f"{mark.name}{OVER}").touch()
        time.sleep(0.01)


def held_up(folder) -> bool:
    """Whether a process stayed to the end in what a signal should have ended: by what it did, not by the clock."""
    return any(folder.glob(f"*{OVER}"))


def slowed(owner, name: str, mark, when=lambda: True, over=lambda: False) -> None:
    """Have a function linger before it does its work."""
    plain = getattr(owner, name)

    def slow(*args, **values):
        if when() and not mark.exists():
            linger(mark, over)
        return plain(*args, **values)

    setattr(owner, name, slow)


@patience()
def train_slowly(phase: str, project, run, mark, workers: int, **options) -> None:
    """Train an LDM that lingers in one phase, once, on the process that is at work then."""
    start_world()
    rank = os.environ.get("RANK", "0")
    mark = mark.with_name(f"{mark.name}-{rank}")
    cache = run.parent / "fresh-cache" if phase == "cache build" else project / "cache"
    settings = settings_of("ldm", project, run, save_every=3, sample_every=3, num_workers=workers, **options)
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"cache_dir": cache})})
    if phase == "cache build":
        slowed(ldm.training.latent_cache, "posterior", mark)
    task = task_of("ldm", settings, run)
    trainer = Trainer(task, settings, run)
    here, signalled = lambda: trainer.step == AT[phase], lambda: bool(trainer.held.pending)
    if phase in ("first step", "training"):
        slowed(trainer.module, "forward", mark, here, signalled)
    elif phase == "evaluation":
        slowed(task, "report", mark, here)
    elif phase == "saving":
        slowed(checkpoint, "prune", mark, lambda: checkpoint.saved(trainer.checkpoints), signalled)
    elif phase == "finishing":
        slowed(task, "finish", mark, over=signalled)
    trainer.fit()


def pytest_generate_tests(metafunc):
    if "trial" in metafunc.fixturenames:
        every = list(itertools.product(PHASES, (1, 2), (signal.SIGTERM, signal.SIGINT), (0, 2), ["plain"]))
        every += [(phase, size, signal.SIGTERM, 0, "plain") for phase in PHASES for size in (1, 2)]
        others = [(phase, way) for phase in PHASES if phase != "cache build" for way in WAYS if way != "plain"]
        every += [(phase, WAYS[way][0], signal.SIGTERM, 0, way) for phase, way in others]
        quick = [(phase, 1 + i % 2, signal.SIGTERM, i % 2, "plain") for i, phase in enumerate(PHASES)]
        quick += [("saving", 2, signal.SIGTERM, 0, "sharded, asynchronous")]
        chosen = every if metafunc.config.getoption("--all-faults") else quick
        trials = [pytest.param(trial, marks=marks(trial[4])) for trial in chosen]
        metafunc.parametrize("trial", trials, ids=lambda t: f"{t[0]}-{t[1]}-{t[2].name}-{t[3]}-{t[4]}")


def test_a_signal_in_any_phase_costs_nothing(trial, project, undisturbed, tmp_path, survived):
    phase, size, number, workers, way = trial
    _, environment, options = WAYS[way]
    run, mark = tmp_path / "run", tmp_path / "mark"
    (tmp_path / "out").mkdir()
    work = partial(train_slowly, phase, project, run, mark, workers, **options)
    children = world(work, tmp_path / "out" / "said", size, environment=environment)
    until(lambda: (tmp_path / "mark-0").exists())
    for child in children:
        child.kill(number)
    codes = [child.wait() for child in children]
    said = children[0].said()
    assert codes == [CODES[number]] * size, said
    assert not held_up(tmp_path) and "Traceback" not in said
    newest = checkpoint.newest(run / "checkpoints")
    reached = max(losses(run), default=0)
    if phase == "cache build":
        assert newest is None and not list(run.parent.rglob("*.tmp"))
    else:
        assert newest.name == checkpoint.name(reached)
        assert f"stopped after step {reached}" in said or phase == "finishing" or reached == 8
        expected = {"first step": 1, "training": 5, "evaluation": 3, "saving": 3, "finishing": 8}[phase]
        assert reached == expected or (phase == "saving" and "asynchronous" in way and reached > expected)
    again = partial(train, "ldm", project, run, sample_every=3, **options)
    for child in world(again, tmp_path / "again", size, environment=environment):
        assert child.wait() == 0, child.said()
    if size == WAYS[way][0]:
        assert_same_run(undisturbed("ldm", way, sample_every=3), run)
    survived(f"{number.name} in a training, {way}", 1)


def test_a_signal_to_the_whole_group_spares_the_step_from_its_loaders(project, tmp_path, survived):
    """As a terminal sends Ctrl-C: to the loader's workers too."""
    run, mark = tmp_path / "run", tmp_path / "mark"

    def work():
        os.setpgrp()
        train_slowly("training", project, run, mark, 2)

    child = Child(work, tmp_path / "said")
    until(lambda: (tmp_path / "mark-0").exists())
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait() == 130, child.said()
    assert checkpoint.newest(run / "checkpoints").name == checkpoint.name(5) and "Traceback" not in child.said()
    survived("SIGINT to a whole process group", 1)


def test_a_second_signal_stops_at_once(project, tmp_path, survived):
    run, mark = tmp_path / "run", tmp_path / "mark"

    def work():
        import ldm.utils.signals

        ldm.utils.signals.REPEAT_SECONDS = 0.2
        trainer_step = Trainer._step

        def endless(self, *args):
            if self.step == 4:
                linger(mark)
            return trainer_step(self, *args)

        Trainer._step = endless
        train("ldm", project, run)

    child = Child(work, tmp_path / "said")
    until(mark.exists)
    child.kill(signal.SIGTERM)
    time.sleep(0.5)
    child.kill(signal.SIGTERM)
    assert child.wait() == 143 and not held_up(tmp_path), child.said()
    assert checkpoint.newest(run / "checkpoints").name == checkpoint.name(3)
    survived("second signal", 1)


def test_a_signal_while_a_model_is_pushed_ends_the_upload(project, tmp_path, survived):
    """What has not become a commit leaves nothing behind; see test_hub.py for the commits themselves."""
    mark = tmp_path / "mark"

    def work():
        import huggingface_hub

        from ldm.hub.push import push

        huggingface_hub.HfApi.create_repo = lambda *args, **values: linger(mark)
        push(project / "model", "user/name")

    child = Child(work, tmp_path / "said")
    until(mark.exists)
    child.kill(signal.SIGTERM)
    assert child.wait() == 143 and not held_up(tmp_path) and "Traceback" not in child.said()
    survived("SIGTERM while pushing", 1)
