"""Fixtures for data of one's own."""

import pytest

from ldm.config.settings import DataOptions, FileOptions


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    return folder


@pytest.fixture
def options(tmp_path):
    def make(source, channels=1, resolution=16, **files) -> DataOptions:
        file_options = FileOptions(**{"validation_fraction": 0.5, **files})
        cache = tmp_path / "cache"
        return DataOptions(
            source=str(source), channels=channels, resolution=resolution, cache_dir=cache, files=file_options
        )

    return make
