"""Streams many small images through several processes and workers, and counts each: images a second and memory.

    python benchmarks/streaming.py --images 1000000 --ranks 2 --workers 2

One shard is written, of 16 x 16 PNGs with captions, and stands under as many names as there are shards, so that the
disk holds it once. Every worker reports the memory that it and its decoder have for themselves.
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from protocol import markdown, write_report

from ldm.utils.runtime import prepare_threads, run_main

SIDE, BATCH = 16, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--per-shard", type=int, default=10_000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="of each rank")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="shards and their index")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args()
    prepare_threads(1)
    pattern = write_shards(args.work / f"shards-{args.images}-{args.per_shard}", args.images, args.per_shard)
    found = measure(pattern, args)
    print(markdown(["what", "value"], [[name, value] for name, value in found.items()]))
    write_report(args.output / "streaming.json", {"images": args.images, **found})


def write_shards(folder: Path, images: int, each: int) -> str:
    """One shard under the names of all; their pattern."""
    import io
    import tarfile

    from PIL import Image

    def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
        header = tarfile.TarInfo(name)
        header.size = len(data)
        archive.addfile(header, io.BytesIO(data))

    folder.mkdir(parents=True, exist_ok=True)
    first, rng = folder / "part-00000.tar", np.random.default_rng(0)
    if not first.exists():
        with tarfile.open(first, "w") as archive:
            for i in range(each):
                stream = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), np.uint8)).save(stream, "PNG")
                add(archive, f"{i:06d}.png", stream.getvalue())
                add(archive, f"{i:06d}.txt", f"image {i}".encode())
    for number in range(1, images // each):
        if not (name := folder / f"part-{number:05d}.tar").exists():
            os.link(first, name)
    return str(folder / "part-*.tar")


class Counted:
    """Of each sample of a batch its number; and of the worker that read it the memory, in bytes."""

    weights, buckets = None, None

    def __init__(self, data: Any):
        from ldm.data import epoch_order

        self.data, self.num_samples, self.order, self.batches = data, len(data), epoch_order(data), 0

    def batch(self, samples: list, rows: Any) -> dict:
        import torch

        rng = np.random.default_rng(0)
        pixels = np.stack([self.data.image(sample.index) for sample in samples])
        captions = [self.data.caption(sample.index, rng) for sample in samples]
        assert all(captions) and pixels.shape[1:] == (SIDE, SIDE, 1)
        self.batches += 1
        size, used = cost() if self.batches % 10 == 1 else (0, 0)
        indices = torch.tensor([sample.index for sample in samples])
        return {"index": indices, "worker": torch.tensor([os.getpid(), size, used, self.batches])}


def cost() -> tuple[int, int]:
    """Bytes that this process and its decoder hold for themselves, and the milliseconds of a core that they used."""
    import psutil

    own = psutil.Process()
    both = [own, *own.children()]
    used = sum(one.cpu_times().user + one.cpu_times().system for one in both)
    return sum(one.memory_full_info().uss for one in both), round(1000 * used)


def measure(pattern: str, args: argparse.Namespace) -> dict[str, Any]:
    from ldm.config.settings import DataOptions
    from ldm.data import build

    began = time.perf_counter()
    options = DataOptions(
        source=pattern, resolution=SIDE, cache_dir=args.work / "streaming-cache", files={"validation_fraction": 0}
    )
    data = build(options).train
    indexed, began = time.perf_counter() - began, time.perf_counter()
    steps = len(data) // BATCH
    counts = np.zeros(len(data), np.uint8)
    memory: dict[int, list[tuple[int, ...]]] = {}
    for step, batches in enumerate(streams(data, steps, 0, args)):
        for batch in batches:
            counts[batch["index"].numpy()] += 1
            worker, size, used, done = batch["worker"].tolist()
            if size:
                memory.setdefault(worker, []).append((step, size, used, done))
    seconds = time.perf_counter() - began
    assert counts.max() == 1 and counts.sum() == steps * BATCH, "an image came twice"
    warm = {worker: [size for step, size, *_ in told if step >= steps // 10] for worker, told in memory.items()}
    growth = max(sizes[-1] / sizes[0] - 1 for sizes in warm.values() if sizes)
    spent = sum(told[-1][2] - told[0][2] for told in memory.values()) / 1000
    decoded = sum(told[-1][3] - told[0][3] for told in memory.values()) * BATCH // args.ranks
    return {
        "images": steps * BATCH,
        "each once in the epoch": "yes",
        "seconds to index the shards": indexed,
        "images/s": steps * BATCH / seconds,
        "images/s of a core, decoding and loading": decoded / spent,
        "MiB of a worker after a tenth, the largest": max(sizes[0] for sizes in warm.values()) / 2**20,
        "its growth from there to the end": f"{growth:.1%}",
    }


def streams(data: Any, steps: int, first: int, args: argparse.Namespace) -> Iterator[tuple]:
    """The batches of all ranks, step by step."""
    from torch.utils.data import DataLoader

    from ldm.config.settings import TrainOptions
    from ldm.training.data_order import Batches, batch_slices

    train = TrainOptions(num_steps=steps, batch_size=BATCH)
    tasks = [Batches(Counted(data), 0) for _ in range(args.ranks)]
    samplers = [batch_slices(train, first, rank, args.ranks) for rank in range(args.ranks)]
    loaders = [
        DataLoader(task, sampler=sampler, batch_size=None, num_workers=args.workers)
        for task, sampler in zip(tasks, samplers, strict=True)
    ]
    return zip(*loaders, strict=True)


if __name__ == "__main__":
    run_main(main)
