"""Small picture folders, and what a reader made of them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


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
