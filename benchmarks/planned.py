"""What `ldm plan --gpu` says of a training, against the same training on this CPU: predicted / real.

    python benchmarks/planned.py --widths 32 64 --batches 8 32

The CPU stands for the GPU: its FLOP/s are those that the first case reaches, its bandwidth that of a copy of memory. So
the first case's computation is predicted by definition, and the others by the formulas of docs/scaling.md. Each case
is a U-Net of two levels on latents of 16 x 16, in a process of its own, one thread, fp32.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from protocol import markdown, write_report

from ldm.utils.assets import shipped_configs
from ldm.utils.runtime import prepare_threads, run_main

CONFIG = shipped_configs() / "smoke.yaml"
STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    prepare_threads(1)
    if args.child:
        return print(json.dumps(real(*args.child)))
    cases = [(width, batch) for width in args.widths for batch in args.batches]
    found = [json.loads(subprocess.check_output([sys.executable, __file__, "--child", *map(str, c)])) for c in cases]
    rows = compare(cases, found)
    names = ["width, batch", *rows[0][1]]
    print(markdown(names, [[case, *(f"{value:.2f}" for value in row.values())] for case, row in rows]))
    write_report(args.output / "planned.json", {"real": dict(zip(map(str, cases), found, strict=True)), "rows": rows})


def settings(width: int, batch: int) -> Any:
    from ldm.config.loading import load

    model = {"block_out_channels": [width, 2 * width], "norm_num_groups": 8}
    changes = {"model": model, "train": {"batch_size": batch}, "data": {"resolution": 64}, "vae": "autoencoders/f4"}
    return load("ldm", CONFIG, changes)


def real(width: int, batch: int) -> dict[str, float]:
    """CPU seconds of the passes and of the update of a step, the least of some, and the bytes that training adds."""
    import psutil
    import torch

    from ldm.training.cost_estimate import probe_target, timed_step
    from ldm.training.ema import EMA
    from ldm.training.optimizer import build_optimizer

    ours, cpu = settings(width, batch), torch.device("cpu")
    subject, before = probe_target("ldm", ours, CONFIG), psutil.Process().memory_info().rss
    model = subject.build().train()
    optimizer, ema = build_optimizer(model, ours.optim), EMA(model.parameters())
    seconds: dict[str, list[float]] = {"compute": [], "update": []}
    for _ in range(STEPS):
        began = time.process_time()
        timed_step(subject, model, batch, cpu, None)
        seconds["compute"].append(time.process_time() - began)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-6)
        began = time.process_time()
        optimizer.step()
        ema.step(model.parameters())
        seconds["update"].append(time.process_time() - began)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {name: min(values) for name, values in seconds.items()} | {"memory": peak - before, "copy": copy_seconds()}


def copy_seconds() -> float:
    """Of reading and writing a byte, at best."""
    import torch

    one, other = torch.zeros(2**26), torch.empty(2**26)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        other.copy_(one)
        seconds.append(time.process_time() - began)
    return min(seconds) / (2 * one.nbytes)


def compare(cases: list[tuple[int, int]], found: list[dict[str, float]]) -> list[tuple[str, dict[str, float]]]:
    """Predicted / real of each case."""
    from ldm.apps.cluster import Estimate
    from ldm.apps.gpus import Gpu
    from ldm.training.cost_estimate import measure_cost, probe_target

    costs = [measure_cost(probe_target("ldm", settings(*case), CONFIG)) for case in cases]
    flops = costs[0].flops * cases[0][1] / found[0]["compute"]
    cpu = Gpu(flops, 0, 1 / min(one["copy"] for one in found), 1)
    rows = []
    for (width, batch), cost, seen in zip(cases, costs, found, strict=True):
        planned = Estimate(cost, cpu, 1, batch, batch, efficiency=1, half=False)
        step = seen["compute"] + seen["update"]
        rows.append(
            (
                f"{width}, {batch}",
                {
                    "step, s": step,
                    "step": planned.step / step,
                    "passes": planned.compute / seen["compute"],
                    "update": planned.update / seen["update"],
                    "memory, MB": seen["memory"] / 1e6,
                    "memory": planned.memory / seen["memory"],
                },
            )
        )
    return rows


if __name__ == "__main__":
    run_main(main)
