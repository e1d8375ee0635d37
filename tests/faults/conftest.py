"""One tiny project of pictures and parts for all trainings that faults are injected into."""

import pytest
import tiny_trainings
from forked import Child, world
from tiny_trainings import WAYS


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """Made in a child: this process only forks, and keeps no threads or state of torch."""
    folder = tmp_path_factory.mktemp("project")
    child = Child(lambda: tiny_trainings.write_project(folder / "made"), folder / "output")
    assert child.wait() == 0, child.said()
    return folder / "made"


@pytest.fixture(scope="session")
def undisturbed(project, tmp_path_factory):
    """(part, way, **options) -> the folder of a run that nothing happened to; each is trained once.

    Checkpoints that are written asynchronously are those that are not.
    """
    runs = {}

    def run(part: str, way: str = "plain", **options):
        size, environment, more = WAYS[way]
        options |= more | {"async_checkpoints": False}
        key = (part, size, *sorted(options.items()))
        if key not in runs:
            folder = tmp_path_factory.mktemp("undisturbed") / part
            work = lambda: tiny_trainings.train(part, project, folder, **options)  # noqa: E731
            for child in world(work, folder.with_suffix(".txt"), size, environment=environment):
                assert child.wait() == 0, child.said()
            runs[key] = folder
        return runs[key]

    return run
