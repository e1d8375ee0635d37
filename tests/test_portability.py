"""Nothing in ldm needs POSIX: read from the sources; and a complete training where Windows' rules hold."""

import ast
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_layers import PACKAGE, ROOT, tree

from ldm.training.data_order import Batches, batch_slices

POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "readline", "curses"}
POSIX_NAMES = {  # of modules that exist everywhere
    "os": "fork forkpty sched_getaffinity getloadavg uname killpg getpgid setsid getuid geteuid getgid chown mkfifo "
    "nice wait waitpid WNOHANG O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_CLOEXEC pread pwrite posix_fadvise sync statvfs",
    "signal": "SIGHUP SIGKILL SIGUSR1 SIGUSR2 SIGPROF SIGALRM SIGPIPE SIGCHLD SIGBUS setitimer alarm pause sigwait "
    "pthread_sigmask",
    "time": "tzset clock_gettime CLOCK_MONOTONIC",
    "socket": "AF_UNIX",
}


def guarded(path: Path) -> set[ast.AST]:
    """Statements that run where an ImportError has a way out."""
    found = set()
    for node in ast.walk(tree(path)):
        guards = isinstance(node, ast.Try) and any("ImportError" in ast.dump(h.type) for h in node.handlers if h.type)
        guards |= isinstance(node, ast.With) and any("ImportError" in ast.dump(item) for item in node.items)
        found |= {inner for child in node.body for inner in ast.walk(child)} if guards else set()
    return found


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.ImportFrom):
        return {str(node.module).split(".")[0]}
    return {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()


def is_posix(node: ast.AST) -> bool:
    """signal.SIGHUP, and not getattr(signal, "SIGHUP", None)."""
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return named and node.attr in POSIX_NAMES.get(node.value.id, "").split()


def test_what_only_posix_has_is_optional():
    needed = []
    for path in PACKAGE:
        optional = guarded(path)
        for node in ast.walk(tree(path)):
            if (imported(node) & POSIX_MODULES and node not in optional) or is_posix(node):
                needed.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert not needed, "Windows has none of it: `except ImportError`, or getattr(module, name, None)"


def is_text(call: ast.Call) -> bool:
    """Whether a call reads or writes text in the system's own encoding, on Windows no UTF-8."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if any(word.arg == "encoding" for word in call.keywords):
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) == (name == "write_text")
    if name != "open" or getattr(getattr(call.func, "value", None), "id", "") in ("Image", "os", "tarfile", "av"):
        return False
    modes = [word.value for word in call.keywords if word.arg == "mode"] + call.args[isinstance(call.func, ast.Name) :]
    return not modes or (isinstance(modes[0], ast.Constant) and "b" not in str(modes[0].value))


def test_text_files_name_their_encoding():
    calls = [(path, node) for path in PACKAGE for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    assert len(calls) > 5000
    unnamed = [f"{path.relative_to(ROOT)}:{call.lineno} {ast.unparse(call)}" for path, call in calls if is_text(call)]
    assert not unnamed


# ---- what goes to the workers of a data loader that are no copies of this process ------------------------------------


@pytest.mark.parametrize("part", ["clip", "vae", "ldm"])
def test_batches_go_to_another_process_without_networks(part, project):
    from tiny_trainings import settings_of, task_of

    run = project / "first" / part
    settings = settings_of(part, project, run)
    batches = Batches(task_of(part, settings, run), settings.seed)
    rows = next(batch_slices(settings.train, 3, 0, 1))
    batches.task.token_rows = getattr(batches.task, "token_rows", None)
    sent = pickle.dumps(batches)
    weights = sum(p.numel() * p.element_size() for p in batches.task.module.parameters())
    received = pickle.loads(sent)
    assert len(sent) < 120_000 and len(sent) < max(weights, 120_000)  # a tokenizer is most of it
    here, there = batches[rows], received[rows]
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
    assert not any(isinstance(value, torch.nn.Module) for value in vars(received.task).values())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    from tiny_trainings import write_project

    return write_project(tmp_path_factory.mktemp("portable") / "project")


def test_latents_are_opened_again_and_not_sent(tmp_path):
    from ldm.training.latent_cache import Latents, open_latents

    arrays = np.random.default_rng(0).normal(size=(2, 500, 4, 8, 8)).astype(np.float16)
    for name, array in zip(("mean", "std"), arrays, strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    sent = pickle.dumps(open_latents(tmp_path))
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).std, arrays[1])
    assert np.array_equal(pickle.loads(pickle.dumps(Latents(*arrays))).mean, arrays[0])  # in memory: sent


# ---- all of it -------------------------------------------------------------------------------------------------------

EVERYTHING = """
import sys
from pathlib import Path

def main():
    from accelerate.state import AcceleratorState
    from tiny_trainings import PARTS, train, write_project

    from ldm.cli.main import main as ldm
    from ldm.utils.checkpoint_files import newest

    folder = write_project(Path(sys.argv[1]))
    for part in PARTS:
        for steps in (3, 5):
            run = folder / "run" / part
            train(part, folder, run, num_steps=steps, save_every=2, num_workers=int(part == sys.argv[2]))
            AcceleratorState._reset_state(reset_partial_state=True)
        assert newest(run / "checkpoints").name == "step-00000005"
    ldm(["generate", "\\u6c34 picture 1", "-m", str(run), "-o", str(folder / "\\u6c34.png")])

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_training_and_generation_where_windows_rules_hold(tmp_path):
    """Caches, three trainings with checkpoints, each resumed, and an image; one of them with a spawned worker."""
    (tmp_path / "everything.py").write_text(EVERYTHING, encoding="utf-8")
    paths = [ROOT / "tests" / "other_system", ROOT / "tests", ROOT]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, tmp_path / "everything.py", tmp_path / "project", "ldm"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    from PIL import Image

    assert Image.open(tmp_path / "project" / "\u6c34.png").size == (16, 16)
    left = [path.name for path in (tmp_path / "project").rglob(".*")]
    assert not left, left  # no drafts, no locks
