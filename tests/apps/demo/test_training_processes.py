"""Trainings that the demo starts: with a program that stands in for `ldm`, and once with `ldm train` itself."""

import json
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from ldm.apps.demo.training_processes import LOCK, STATE, Started, Trainings, plan_file, write_state
from ldm.apps.demo.training_status import log_tail, status_of
from ldm.utils import file_locks
from ldm.utils.errors import UserError

STUB = """
import os, signal, sys, time
from pathlib import Path

words = sys.argv[1:]
option = {words[i]: words[i + 1] for i in range(len(words) - 1)}
print("words", *words, flush=True)
if words[0] == "new":
    if "empty" in words[1]:
        sys.exit("error: no images in there")
    Path(option["--output"]).write_text("# 12 images.\\nname: mine\\n# U-Net 32/64: about 3 min.\\n")
    sys.exit(0)
home = Path(words[1]).parent
run = home / "vae"
run.mkdir(exist_ok=True)
step = len((run / "log.jsonl").read_text().splitlines()) if (run / "log.jsonl").exists() else 0


def saved(*_):
    print("saved at", step, flush=True)
    sys.exit(143)


signal.signal(signal.SIGTERM, saved)
while step < 10_000:
    step += 1
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": %d, "loss": 1.0}\\n' % step)
    if (home / "finish").exists():
        print("next: ldm generate -m", home / "model", flush=True)
        sys.exit(0)
    time.sleep(0.01)
"""


@pytest.fixture
def trainings(tmp_path):
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "mine").mkdir()
    made = Trainings(tmp_path / "runs", True, (sys.executable, "-S", str(tmp_path / "stub.py")))
    yield made
    for name in made.names():
        if process := made.running(name):
            process.kill()


def until(happened, seconds=20.0):
    """The first true result of `happened`."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found


def ended(trainings, name):
    return until(lambda: trainings.running(name) is None)


def test_a_training_is_planned_started_stopped_resumed_and_finished(trainings, tmp_path):
    name = trainings.plan(str(tmp_path / "mine"), 30)
    assert name == "mine" and ended(trainings, name)
    planned = status_of(trainings, name)
    assert planned.state.startswith("planned") and planned.can == {"plan", "train"}
    assert planned.plan == ["12 images.", "U-Net 32/64: about 3 min."] and not planned.command
    trainings.train(name)
    until(lambda: status_of(trainings, name).watched)
    running = status_of(trainings, name)
    assert running.state.startswith("training the autoencoder: step ") and running.can == {"stop"}
    command = trainings.started(name).command
    trainings.stop(name)
    assert status_of(trainings, name).state.startswith("stopping") or trainings.running(name) is None
    ended(trainings, name)
    stopped = status_of(trainings, name)
    saved = int(stopped.log[-1].removeprefix("saved at "))
    assert stopped.state.startswith("not running: Resume") and stopped.can == {"train"}
    trainings.train(name)
    assert trainings.started(name).command == command  # the same one continues it
    (tmp_path / "runs/mine/finish").touch()
    ended(trainings, name)
    finished = status_of(trainings, name)
    assert finished.state == f"finished; next: ldm generate -m {tmp_path / 'runs/mine/model'}" and not finished.can
    (tmp_path / "runs/mine/model").mkdir()
    (tmp_path / "runs/mine/model/model_index.json").write_text("{}")
    assert status_of(trainings, name).state == f"finished; next: ldm app -m {tmp_path / 'runs/mine/model'}"
    steps = [json.loads(row)["step"] for row in (tmp_path / "runs/mine/vae/log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > saved


def test_the_words_are_those_of_the_command_line(trainings, tmp_path):
    trainings.plan(f"  {tmp_path / 'mine'} ", 30.5)
    ended(trainings, "mine")
    output = tmp_path / "runs" / "mine"
    words = ["new", str(tmp_path / "mine"), "--minutes", "30.5", "--name", "mine"]
    words += ["--output", str(output / "mine.yaml")]
    words += [word for stage in ("clip", "vae", "ldm") for word in (f"--{stage}.output_dir", str(output / stage))]
    assert log_tail(output)[-1] == f"words {' '.join(words)}"
    trainings.train("mine")
    command = until(lambda: status_of(trainings, "mine")).command
    assert command == f"ldm train {output / 'mine.yaml'} --output {output / 'model'}"


def test_a_training_outlives_what_started_it_and_is_found_again(trainings, tmp_path):
    trainings.plan(str(tmp_path / "mine"), 30)
    ended(trainings, "mine")
    program = textwrap.dedent(f"""
        from pathlib import Path
        from ldm.apps.demo.training_processes import Trainings
        Trainings(Path({str(tmp_path / "runs")!r}), True, {trainings.program!r}).train("mine")
    """)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)  # it has ended now
    later = Trainings(tmp_path / "runs", True, trainings.program)
    process = later.running("mine")
    assert later.names() == ["mine"] and process is not None
    if hasattr(os, "getsid"):
        assert os.getsid(process.pid) == process.pid  # Ctrl-C in the terminal of the demo does not reach it
    assert until(lambda: (tmp_path / "runs/mine/vae/log.jsonl").exists())  # it listens to signals from here on
    later.stop("mine")
    ended(later, "mine")
    assert log_tail(tmp_path / "runs/mine")[-1].startswith("saved at ")


def test_there_is_one_training_in_an_output_folder(trainings, tmp_path):
    trainings.plan(str(tmp_path / "mine"), 30)
    ended(trainings, "mine")
    trainings.train("mine")
    for again in (lambda: trainings.train("mine"), lambda: trainings.plan(str(tmp_path / "mine"), 30)):
        with pytest.raises(UserError, match="mine is running: stop it first"):
            again()
    trainings.stop("mine")
    ended(trainings, "mine")
    with open(tmp_path / "runs/mine" / LOCK) as lock:  # as a second demo holds it while it starts one
        assert file_locks.lock(lock.fileno())
        with pytest.raises(UserError, match="being started by another page"):
            trainings.train("mine")


def test_a_training_that_a_shell_started_is_not_joined(trainings, tmp_path):
    trainings.plan(str(tmp_path / "mine"), 30)
    ended(trainings, "mine")
    run = tmp_path / "runs/mine/ldm"
    run.mkdir()
    held = "import sys, pathlib; from ldm.training.run_directory import lock_run"
    held += "; lock_run(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", held, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"mine is in training by process {other.pid} on "):
        trainings.train("mine")
    other.communicate("", timeout=30)
    trainings.train("mine")
    assert trainings.running("mine")


def test_a_process_id_that_was_given_again_is_not_the_training(trainings, tmp_path):
    (tmp_path / "runs/mine").mkdir(parents=True)
    me = psutil.Process()
    state = Started("train", str(tmp_path / "mine"), 30, [*trainings.program, "train"], me.pid, me.create_time() - 60)
    write_state(tmp_path / "runs/mine", state)
    assert trainings.running("mine") is None
    with pytest.raises(UserError, match="mine is not running"):
        trainings.stop("mine")


def test_a_plan_that_fails_says_why(trainings, tmp_path):
    (tmp_path / "empty").mkdir()
    name = trainings.plan(str(tmp_path / "empty"), 30)
    ended(trainings, name)
    seen = status_of(trainings, name)
    assert seen.state == "no plan was made: no images in there" and seen.can == {"plan"}
    with pytest.raises(UserError, match="empty has no plan yet: plan it first"):
        trainings.train(name)


def test_where_others_can_open_the_page_no_process_is_started_or_ended(trainings, tmp_path):
    trainings.plan(str(tmp_path / "mine"), 30)
    ended(trainings, "mine")
    shared = Trainings(tmp_path / "runs", False, trainings.program)
    images = str(tmp_path / "mine")
    for action in (lambda: shared.plan(images, 30), lambda: shared.train("mine"), lambda: shared.stop("mine")):
        with pytest.raises(UserError, match="only where the demo listens on this machine alone"):
            action()
    assert status_of(shared, "mine").state.startswith("planned")  # watching is no risk


@pytest.mark.parametrize(
    ("folder", "minutes", "message"),
    [
        ("", 30, "name the folder"),
        (None, 30, "name the folder"),
        ("a\0b", 30, "name the folder"),
        ("--help", 30, "--help is no folder"),
        ("mine", 0, "minutes must be from 1 to 20,160, got 0"),
        ("mine", float("nan"), "got nan"),
        ("mine", True, "got True"),
        ("mine", "5", "got 5"),
        ("mine", 10**9, "got 1000000000"),
    ],
)
def test_what_cannot_be_trained_is_refused(trainings, tmp_path, monkeypatch, folder, minutes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        trainings.plan(folder, minutes)
    assert trainings.names() == []


def test_a_folder_of_something_else_is_left_alone(trainings, tmp_path):
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="has files of something else"):
        trainings.plan(str(tmp_path / "mine"), 30)
    with pytest.raises(UserError, match="there is no such training"):
        trainings.train("../mine")
    with pytest.raises(UserError, match="there is no such training"):
        status_of(trainings, "..")


def test_two_folders_of_one_name_are_not_mixed_up(trainings, tmp_path):
    (tmp_path / "other/mine").mkdir(parents=True)
    ended(trainings, trainings.plan(str(tmp_path / "mine"), 30))
    with pytest.raises(UserError, match="mine is a training of "):
        trainings.plan(str(tmp_path / "other/mine"), 30)


def test_half_a_state_file_is_no_training(trainings, tmp_path):
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine" / STATE).write_text('{"verb": "tra')
    assert trainings.started("mine") is None and trainings.running("mine") is None
    with pytest.raises(UserError, match="there is no such training"):
        status_of(trainings, "mine")


@pytest.mark.slow
def test_ldm_train_itself_is_planned_started_stopped_and_resumed(tmp_path, monkeypatch):
    """With more minutes than it takes until it is stopped: a busy machine plans for few steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    images, rng = tmp_path / "dots", np.random.default_rng(0)
    images.mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(images / f"{i:02}.png")
        (images / f"{i:02}.txt").write_text(f"dots number {i}")
    trainings = Trainings(tmp_path / "elsewhere", True)
    output = tmp_path / "elsewhere" / "dots"
    try:
        trainings.plan(str(images), 600)
        until(lambda: trainings.running("dots") is None, 900)
        planned = status_of(trainings, "dots")
        assert planned.state.startswith("planned") and any("Autoencoder" in line for line in planned.plan), planned
        trainings.train("dots")
        until(lambda: status_of(trainings, "dots").watched, 600)
        trainings.stop("dots")
        until(lambda: trainings.running("dots") is None, 300)
        stage = next(path.name for path in output.iterdir() if (path / "log.jsonl").is_file())
        assert any((output / stage / "checkpoints").iterdir()) and not (tmp_path / "runs").exists()
        steps = len((output / stage / "log.jsonl").read_text().splitlines())
        trainings.train("dots")
        until(lambda: len((output / stage / "log.jsonl").read_text().splitlines()) > steps, 600)
        assert any("resum" in line for line in log_tail(output))
    finally:
        if process := trainings.running("dots"):
            process.kill()
    assert plan_file(output).is_file()
