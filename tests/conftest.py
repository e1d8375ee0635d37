"""Every test runs offline and leaves the machine's threads and caches alone; `-n auto` shares the files among cores.

Tests that inject faults ask `trials(quick, full)` how many, and tell `survived(kind, fired)` how many fired and were
met: `quick` by default, `full` with `--all-faults`, which `make faults` gives. The counts end the report.
"""

import gc
import os
import sys

gc.disable()  # until all is imported: of a million objects that stay, none is rubbish
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported by any test
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402

LONGEST = ("test_end_to_end.py", "test_own_images.py", "test_pages.py")  # minutes each: begun first, nobody waits last


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish():
    """What was imported is looked through no more, neither here nor in the children that tests fork."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Whole files, in the order above: a file's fixtures are made once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def glyph_cache(tmp_path_factory):
    """One cache of rendered glyphs for all tests, and all workers: the first builds, the others wait."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "glyph-cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def no_graphs(monkeypatch):
    """Exports without the graphs for ONNX Runtime, which take most of their time and are files among files."""
    monkeypatch.setattr("ldm.hub.export._write_graphs", lambda stage: None)


@pytest.fixture(autouse=True)
def no_child_left():
    """A test that fails leaves no process behind, which would hold this one's output open for ever."""
    yield
    if "forked" in sys.modules:
        for child in tuple(sys.modules["forked"].Child.running):
            child.end()


# ---- faults ------------------------------------------------------------------------------------------------------


def pytest_addoption(parser):
    parser.addoption("--all-faults", action="store_true", help="inject every fault that the project claims to survive")


@pytest.fixture
def trials(request):
    """trials(quick, full) -> how many faults to inject."""
    return lambda quick, full: full if request.config.getoption("--all-faults") else quick


@pytest.fixture
def survived(request):
    """survived(kind, fired): say that so many faults of a kind fired and were all met; call it after the asserts."""

    def count(kind: str, fired: int) -> None:
        assert fired > 0, f"no fault of the kind {kind!r} fired"
        request.node.user_properties.append(("faults", (kind, fired)))

    return count


def pytest_terminal_summary(terminalreporter):
    counts: dict[str, int] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "faults" and report.when == "call":
                counts[value[0]] = counts.get(value[0], 0) + value[1]
    if counts:
        terminalreporter.section("faults injected and met")
        for kind, fired in sorted(counts.items()):
            terminalreporter.line(f"{fired:>7,}  {kind}")
