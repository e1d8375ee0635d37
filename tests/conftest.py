"""Every test runs offline and leaves the machine's threads and caches alone."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported by any test
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture(scope="session")
def glyph_cache(tmp_path_factory):
    """One cache of rendered glyphs for all tests."""
    return tmp_path_factory.mktemp("cache")
