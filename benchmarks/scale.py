"""How the cost of our training grows: with the batch, the resolution, the data set and the number of processes.

    python benchmarks/scale.py                     all four tables
    python benchmarks/scale.py batch data --device cuda --batches 16 64 256 1024

Batch and resolution: seconds of a training step of the light stack's U-Net, as `LdmTask` has it, per picture. Data:
what a start costs that finds its cache of latents (it is verified whole), and what a batch of 16 costs. World: CPU
seconds of a short training by `torchrun` with the same global batch, over those of one process.
"""

import argparse
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from protocol import compared, markdown, process, ratio_text, rounds, summary, write_report

from ldm.utils.runtime import prepare_threads, run_main
from ldm.utils.torchvision_compat import patch_torchvision

TABLES = ("batch", "resolution", "data", "world")
WORLD_STEPS = (4, 16)  # of the short and the long training, whose difference leaves out the start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="table", help=f"of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--resolutions", type=int, nargs="+", default=[64, 128, 256], help="of pictures, f = 8")
    parser.add_argument("--pictures", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--sparse", action="store_true", help="caches of zeros, of which the disk holds nothing")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args()
    prepare_threads(1)
    patch_torchvision()
    measures = {"batch": batches, "resolution": resolutions, "data": data_sets, "world": worlds}
    results = {}
    for name in args.tables or TABLES:
        results[name] = measures[name](args)
        print(table(name, results[name]), flush=True)
    write_report(args.output / "scale.json", {"precision": args.precision, "device": args.device, **results})


# ---- batch and resolution ------------------------------------------------------------------------------------------


def batches(args: argparse.Namespace) -> dict:
    return per_picture({str(batch): (batch, 16) for batch in args.batches}, args)


def resolutions(args: argparse.Namespace) -> dict:
    return per_picture({f"{pixels} px": (2, pixels // 8) for pixels in args.resolutions}, args)


def per_picture(cases: dict[str, tuple[int, int]], args: argparse.Namespace) -> dict:
    """Each case's seconds per picture, and how many times those of the first that is."""
    import torch
    from stacks import build_unet

    from ldm.models.unet import choose_attention
    from ldm.training.optimizer import parameter_groups

    device, half = torch.device(args.device), args.precision == "bf16"
    unet = build_unet().to(device).train()
    choose_attention(unet, "auto", device, half)
    optimizer = torch.optim.AdamW(parameter_groups(unet, 0.01), fused=True)

    def step(batch: int, size: int) -> None:
        latents, text = torch.zeros(batch, 4, size, size, device=device), torch.zeros(batch, 77, 256, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            prediction = unet(latents, torch.zeros(batch, device=device), text).sample
        prediction.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    timings = rounds({name: partial(step, *case) for name, case in cases.items()}, args.rounds)
    first = next(iter(cases))
    found = compared(timings, first, "wall" if args.device == "cuda" else "cpu")
    rows = {}
    for name, (batch, _) in cases.items():
        share = cases[first][0] / batch
        costs = {key: 1 / (entry / share) for key, entry in found[name]["ratio"].items() if key != "win"}
        middle = {"median": costs["median"], "lower": costs["upper"], "upper": costs["lower"]}  # of an inverse
        rows[name] = {"seconds_per_picture": found[name]["seconds"]["median"] / batch, "times_the_first": middle}
    return rows


# ---- data ----------------------------------------------------------------------------------------------------------


class Blank:
    """Pictures that are never looked at: their latents are cached already."""

    channels, resolution, has_captions = 3, 128, True

    def __init__(self, count: int):
        self.count, self.fingerprint = count, f"blank {count}"

    def __len__(self) -> int:
        return self.count


def data_sets(args: argparse.Namespace) -> dict:
    """CPU seconds to open the latents of N pictures, and to read 16 at random."""
    from stacks import build_autoencoder

    vae = build_autoencoder("light").eval()
    with tempfile.TemporaryDirectory() as folder:
        return {f"{count:,}": data_set(vae, Blank(count), Path(folder), args.sparse) for count in args.pictures}


def data_set(vae, data: Any, folder: Path, sparse: bool) -> dict:
    import numpy as np
    import torch

    from ldm.models.digests import network_digest
    from ldm.training.latent_cache import cached_latents, latents_folder
    from ldm.utils import checkpoint_files as checkpoint

    random = np.random.default_rng(0)
    with checkpoint.staged(latents_folder(network_digest(vae), data, folder)) as stage:
        for name in ("mean", "std"):
            file, shape = stage / f"{name}.npy", (len(data), 4, 16, 16)
            if sparse:
                np.lib.format.open_memmap(file, "w+", "<f2", shape)
            else:
                np.save(file, random.standard_normal(shape).astype("<f2"))
    latents, noise = cached_latents(vae, data, folder), torch.zeros(16, 4, 16, 16)
    batches = [random.integers(0, len(data), 16).tolist() for _ in range(200)]

    def read() -> None:
        for indices in batches:
            latents.sample(indices, noise)

    timings = rounds({"open": lambda: cached_latents(vae, data, folder), "batch": read}, 5)
    found = {name: summary([timing.cpu for timing in values]) for name, values in timings.items()}
    found["batch"] = {key: value / len(batches) for key, value in found["batch"].items() if key != "rounds"}
    return found | {"bytes": latents.mean.nbytes + latents.std.nbytes}


# ---- world ---------------------------------------------------------------------------------------------------------


def worlds(args: argparse.Namespace) -> dict:
    """CPU seconds of a step of one and of two processes, each the difference of a longer and a shorter training."""
    root = Path(__file__).resolve().parents[1]
    found: dict[str, list[float]] = {"1": [], "2": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(max(1, args.rounds // 2)):
            for world in ("1", "2")[:: -1 if turn % 2 else 1]:
                costs = []
                for steps in WORLD_STEPS:
                    run = Path(folder) / f"run-{world}"
                    shutil.rmtree(run, ignore_errors=True)
                    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", world]
                    options = ["--output-dir", run, "--train.num_steps", steps, "--train.sample_every", 0]
                    options += ["--data.cache_dir", Path(folder) / "cache", "--train.batch_size", 32]
                    words = [sys.executable, *launch, root / "train_vae.py", root / "configs/smoke.yaml", *options]
                    environment = {} if args.device == "cuda" else {"ACCELERATE_USE_CPU": "true"}
                    costs.append(process([str(word) for word in words], environment).cpu)
                found[world].append((costs[1] - costs[0]) / (WORLD_STEPS[1] - WORLD_STEPS[0]))
    return {world: {"step": summary(values)} for world, values in found.items()}


def table(name: str, rows: dict) -> str:
    if name in ("batch", "resolution"):
        head = [name, "seconds a picture", "times the first (quartiles)"]
        body = [[k, row["seconds_per_picture"], ratio_text(row["times_the_first"])] for k, row in rows.items()]
    elif name == "data":
        head = ["pictures", "start with a cache, CPU s", "a batch of 16, ms", "cache, MB"]
        body = [
            [k, row["open"]["median"], 1000 * row["batch"]["median"], row["bytes"] / 1e6] for k, row in rows.items()
        ]
    else:
        head = ["processes", "CPU s a step of all together", "least", "most"]
        body = [[k, *(row["step"][key] for key in ("median", "min", "max"))] for k, row in rows.items()]
    return markdown(head, body)


if __name__ == "__main__":
    run_main(main)
