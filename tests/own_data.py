"""Small image folders, the settings to read them, and what a reader made of them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.config.settings import DataOptions, FileOptions


def png(level: int, size=(16, 16)) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size, level).save(stream, "PNG")
    return stream.getvalue()


def fill(folder: Path, count: int = 8) -> None:
    for i in range(count):
        (folder / f"{i}.png").write_bytes(png(i))


def everything(splits) -> dict[str, tuple[int, str]]:
    """id -> (level of the flat picture, caption)."""
    rng = np.random.default_rng(0)
    return {
        data.ids[i]: (int(data.image(i)[0, 0, 0]), data.caption(i, rng))
        for data in splits.values()
        for i in range(len(data))
    }


def tree(folder: Path) -> dict:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


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
