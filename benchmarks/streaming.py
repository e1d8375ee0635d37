"""Streams many small images through several processes and workers, and counts each: images a second and memory.

    python benchmarks/streaming.py --images 1000000 --ranks 2 --workers 2

The shards are tar files of 16 x 16 PNGs with captions, about 2 KB an image; the pixels of each hold its number, and
what was decoded is counted. The epoch is interrupted once and resumed by new processes. Every worker reports the memory
of itself and its decoder, every rank its own: what is resident, the part of it that is its own alone, pages of mapped
files (which the system takes back when it needs them) and anonymous pages (which it cannot). Linux only.
"""

import argparse
import io
import multiprocessing
import os
import struct
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from protocol import markdown, write_report

from ldm.utils.runtime import prepare_threads, run_main

SIDE, BATCH = 16, 256
EVERY = 20  # batches of a worker from one report of its memory to the next
RESUMED = 0.3  # of the epoch's steps, after which it is interrupted
WARM = 0.1  # of the steps from a start, after which memory is compared


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
    folder = args.work / f"shards-{args.images}-{args.per_shard}"
    pattern = write_shards(folder, args.images, args.per_shard, args.ranks * args.workers)
    found = measure(pattern, args)
    print(markdown(["what", "value"], [[name, value] for name, value in found.items()]))
    write_report(args.output / "streaming.json", {"images": args.images, **found})


# ---- shards --------------------------------------------------------------------------------------------------------


def write_shards(folder: Path, images: int, each: int, processes: int) -> str:
    """Images that hold their number; the shards' pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [
        (folder / f"part-{first // each:05d}.tar", range(first, min(first + each, images)))
        for first in range(0, images, each)
    ]
    with multiprocessing.Pool(processes) as pool:
        pool.starmap(write_shard, [shard for shard in shards if not shard[0].exists()], chunksize=1)
        pool.close()
        pool.join()  # the end of `with` would end workers by a signal
    return str(folder / "part-*.tar")


def write_shard(path: Path, numbers: range) -> None:
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in numbers:
            for name, data in ((f"{number:08d}.png", png(number)), (f"{number:08d}.txt", f"image {number}".encode())):
                header = tarfile.TarInfo(name)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    partial.rename(path)


def png(number: int) -> bytes:
    """A grey PNG whose first four pixels are the bytes of a number."""
    pixels = struct.pack("<I", number).ljust(SIDE * SIDE, b"\0")
    rows = b"".join(b"\0" + pixels[i : i + SIDE] for i in range(0, len(pixels), SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# ---- the epoch -----------------------------------------------------------------------------------------------------


class Numbered:
    """Of each sample of a batch the number in its pixels; and of the worker that read it what it costs."""

    weights, buckets = None, None

    def __init__(self, data: Any):
        from ldm.data import epoch_order

        self.data, self.num_samples, self.order, self.batches = data, len(data), epoch_order(data), 0

    def batch(self, samples: list, rows: Any) -> dict:
        import torch

        rng = np.random.default_rng(0)
        pixels = np.stack([self.data.image(sample.index) for sample in samples])
        numbers = pixels.reshape(len(samples), -1)[:, :4].copy().view("<u4")[:, 0]
        captions = [self.data.caption(sample.index, rng) for sample in samples]
        assert captions == [f"image {number}" for number in numbers], "a caption of another image"
        self.batches += 1
        costs = cost() if self.batches % EVERY == 1 else NO_COST
        worker = [os.getpid(), rows.step, *costs, self.batches * len(samples)]
        return {"numbers": torch.from_numpy(numbers.astype(np.int64)), "worker": torch.tensor(worker)}


class Cost(NamedTuple):
    """Of a process and its decoder: bytes by the kind of their pages, and milliseconds of a core."""

    resident: int
    own: int  # shared with no other process
    file: int  # mapped from files
    anonymous: int
    milliseconds: int


NO_COST = Cost(0, 0, 0, 0, 0)


def cost() -> Cost:
    """What this process and its decoder have cost so far."""
    import psutil

    own = psutil.Process()
    both = [own, *own.children()] if multiprocessing.current_process().daemon else [own]  # a worker's child decodes
    used = sum(one.cpu_times().user + one.cpu_times().system for one in both)
    held = [one.memory_full_info() for one in both]
    resident, alone = sum(one.rss for one in held), sum(one.uss for one in held)
    file, anonymous = (sum(status_bytes(one.pid, name) for one in both) for name in ("RssFile", "RssAnon"))
    return Cost(resident, alone, file, anonymous, round(1000 * used))


def status_bytes(pid: int, name: str) -> int:
    """A line of /proc/PID/status, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class Report(NamedTuple):
    """What a process told: at which step, what it had cost, and how many images it had read."""

    step: int
    cost: Cost
    images: int


def stream(data: Any, rank: int, steps: range, total: int, args: argparse.Namespace, reports: Any) -> None:
    """What one rank does in these of the epoch's `total` steps: its counts go to a file, what it holds to a queue."""
    import torch
    from torch.utils.data import DataLoader

    from ldm.config.settings import TrainOptions
    from ldm.training.data_order import Batches, batch_slices

    torch.set_num_threads(1)
    train = TrainOptions(num_steps=total, batch_size=BATCH)
    sampler = batch_slices(train, steps.start, rank, args.ranks)
    loader = iter(DataLoader(Batches(Numbered(data), 0), sampler=sampler, batch_size=None, num_workers=args.workers))
    counts = np.load(counts_file(args.work, rank), mmap_mode="r+")
    told: dict[int, list[Report]] = {}  # of each process
    for step in steps:
        batch = next(loader)
        np.add.at(counts, batch["numbers"].numpy(), 1)
        worker, at, *costs, images = batch["worker"].tolist()
        if costs[0]:
            told.setdefault(worker, []).append(Report(at, Cost(*costs), images))
            told.setdefault(os.getpid(), []).append(Report(step, cost(), 0))
    counts.flush()
    reports.put(told)


def counts_file(work: Path, rank: int) -> Path:
    return work / f"streaming-counts-{rank}.npy"


def life(data: Any, steps: range, total: int, args: argparse.Namespace) -> dict[int, list[Report]]:
    """All ranks, each a process, through these steps; what was told of each process."""
    context = multiprocessing.get_context("fork")
    reports = context.SimpleQueue()
    ranks = [context.Process(target=stream, args=(data, r, steps, total, args, reports)) for r in range(args.ranks)]
    for one in ranks:
        one.start()
    told: dict[int, list[Report]] = {}
    for _ in ranks:
        told |= reports.get()
    for one in ranks:
        one.join()
    return told


def growth(told: dict[int, list[Report]], steps: range, kind: str) -> str:
    """The largest growth of a process's memory of a kind after its warm-up, and the most that one held then."""
    warm = steps.start + WARM * len(steps)
    sizes = [[getattr(one.cost, kind) for one in reports if one.step >= warm] for reports in told.values()]
    sizes = [one for one in sizes if len(one) > 1]
    rise, by = max((one[-1] / one[0] - 1, one[-1] - one[0]) for one in sizes)
    return f"{rise:.1%} ({by / 2**20:.1f} MiB), to at most {max(map(max, sizes)) / 2**20:.0f} MiB"


def measure(pattern: str, args: argparse.Namespace) -> dict[str, Any]:
    from ldm.config.settings import DataOptions
    from ldm.data import build

    began = time.perf_counter()
    files = {"validation_fraction": 0}
    data = build(
        DataOptions(source=pattern, resolution=SIDE, cache_dir=args.work / "streaming-cache", files=files)
    ).train
    indexed, began = time.perf_counter() - began, time.perf_counter()
    for rank in range(args.ranks):
        np.save(counts_file(args.work, rank), np.zeros(len(data), np.uint8))
    total = len(data) // BATCH
    cut = int(RESUMED * total)
    lives = [life(data, steps, total, args) for steps in (range(cut), range(cut, total))]
    seconds = time.perf_counter() - began
    counts = np.sum([np.load(counts_file(args.work, rank)) for rank in range(args.ranks)], axis=0)
    assert counts.max() == 1, "an image came twice"
    assert counts.sum() == total * BATCH, "an image is missing"
    workers = [reports for told in lives for reports in told.values() if reports[-1].images]
    spent = sum(reports[-1].cost.milliseconds - reports[0].cost.milliseconds for reports in workers) / 1000
    decoded = sum(reports[-1].images - reports[0].images for reports in workers)
    after = f"growth of a process after {WARM:.0%} of the steps"
    return {
        "images": int(counts.sum()),
        "images of the last batch, which is not full": len(data) - total * BATCH,
        "each of them once": "yes",
        "resumed after step": f"{cut} of {total}",
        "seconds to index the shards": indexed,
        "seconds of the epoch": seconds,
        "images/s": total * BATCH / seconds,
        "images/s of a core, decoding and loading": decoded / spent,
        f"{after}, resident": growth(lives[1], range(cut, total), "resident"),
        f"{after}, of its own": growth(lives[1], range(cut, total), "own"),
        f"{after}, pages of mapped files": growth(lives[1], range(cut, total), "file"),
        f"{after}, anonymous pages": growth(lives[1], range(cut, total), "anonymous"),
    }


if __name__ == "__main__":
    run_main(main)
