"""Small shards: tar files as webdataset packs them, and parquet."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from own_data import png

COUNTS = (5, 9, 1, 12, 7, 3, 6)  # of images in seven shards


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    archive.addfile(header, io.BytesIO(data))


def tar_shard(path: Path, levels, captions: str = "txt", size=(16, 16)) -> None:
    """Grey images of these levels, each with the caption "grey LEVEL" in a .txt or .json."""
    with tarfile.open(path, "w") as archive:
        for level in levels:
            text = f"grey {level}"
            add(archive, f"{level:05d}.png", png(level % 256, size))
            add(
                archive,
                f"{level:05d}.{captions}",
                (json.dumps({"text": text}) if captions == "json" else text).encode(),
            )


def parquet_shard(path: Path, levels, group: int = 4, size=(16, 16)) -> None:
    rows = [{"bytes": png(level % 256, size), "path": None} for level in levels]
    table = pa.table({"image": rows, "text": [f"grey {level}" for level in levels]})
    pq.write_table(table, path, row_group_size=group)


def write_shards(folder: Path, kind: str = "tar", counts=COUNTS, **more) -> str:
    """Shards of flat images whose levels count from 0 over all of them; their pattern."""
    folder.mkdir(exist_ok=True, parents=True)
    first = 0
    for number, count in enumerate(counts):
        write = tar_shard if kind == "tar" else parquet_shard
        write(folder / f"part-{number:03d}.{kind}", range(first, first + count), **more)
        first += count
    return str(folder / f"part-*.{kind}")
