"""Every test runs offline and leaves the machine's threads and caches alone; `-n auto` shares the files among cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported by any test
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

LONGEST = ("test_end_to_end.py", "test_own_pictures.py", "test_docs.py")  # minutes each: begun first, nobody waits last


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Whole files, in the order above: a file's fixtures are made once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def glyph_cache(tmp_path_factory):
    """One cache of rendered glyphs for all tests of a process."""
    return tmp_path_factory.mktemp("cache")
