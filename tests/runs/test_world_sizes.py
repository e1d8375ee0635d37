"""One, two and four processes of the real launcher train all stages alike: what they are given and what they learn."""

import json

import numpy as np
import pytest
from commands import BIN, ROOT, run
from noted_training import BATCH, STEPS
from tiny_trainings import PARTS, losses, write_project

pytestmark = pytest.mark.slow
SIZES = (1, 2, 4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder for each number of processes."""
    root = tmp_path_factory.mktemp("worlds")
    project = write_project(root / "project")
    for size in SIZES:
        (root / str(size)).mkdir()
        several = ["--multi_gpu"] if size > 1 else []
        launch = ["launch", "--main_process_port", 0, "--num_processes", size, *several]
        run(
            BIN / "accelerate",
            *launch,
            ROOT / "tests/noted_training.py",
            project,
            root / str(size),
            cwd=root,
            ACCELERATE_USE_CPU="true",
        )
    return {size: root / str(size) for size in SIZES}


def given(folder, part, size):
    """What the processes were given, their rows one after the other, and the gradients that they found together."""
    noted = [dict(np.load(folder / f"{part}-{rank}.npz")) for rank in range(size)]
    gradients = {name: value for name, value in noted[0].items() if name.startswith("gradient/")}
    names = noted[0].keys() - gradients.keys()
    return {name: np.concatenate([one[name] for one in noted]) for name in names}, gradients


def logged(folder, part, key):
    entries = map(json.loads, (folder / part / "log.jsonl").read_text().splitlines())
    return {entry["step"]: entry[key] for entry in entries if key in entry}


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("part", PARTS)
def test_processes_are_given_the_same_and_learn_the_same(part, size, runs):
    one, gradients = given(runs[1], part, 1)
    more, others = given(runs[size], part, size)
    assert one.keys() == more.keys() and {name.split("/")[0] for name in one} == {str(step) for step in range(STEPS)}
    for name, value in one.items():  # samples, tokens of captions, pixels or latents, noise and times: every bit
        assert len(value) == BATCH
        np.testing.assert_array_equal(more[name], value, err_msg=name)
    assert logged(runs[size], part, "lr") == logged(runs[1], part, "lr")
    assert gradients.keys() == others.keys() and gradients
    flat, other = (np.concatenate([g[name].ravel() for name in gradients]) for g in (gradients, others))
    assert np.linalg.norm(other - flat) < 1e-5 * np.linalg.norm(flat) > 0
    assert losses(runs[size] / part) == pytest.approx(losses(runs[1] / part), rel=1e-5)
    assert list(losses(runs[1] / part)) == [*range(1, STEPS + 1)]
