"""How to measure on a machine that others use too: what it is, what it can do at most, and fair comparisons.

    python benchmarks/protocol.py                   this machine and its ceilings
    python benchmarks/protocol.py --device cuda

On a CPU the measure is CPU seconds of one thread, which other programs hardly disturb; wall seconds count only for
rounds in which they were quiet. On CUDA it is wall seconds between synchronisations. Two things are compared in one
process by turns, A B | B A | A B ..., and by the ratio within each round; it is a win when the lower quartile of the
ratios is above one. Whole programs are measured as fresh processes.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldm.utils.runtime import prepare_threads, run_main

QUIET = 0.06  # the most that other programs may use of the machine in a round whose wall seconds count
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "datasets", "pillow", "onnxruntime", "openvino")

# ---- clocks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """What one call cost: seconds of this process's CPU and of the clock, and others' share of all cores meanwhile."""

    cpu: float
    wall: float
    foreign: float | None  # None where the system does not say


@dataclass(frozen=True)
class Process:
    """What a whole program cost."""

    cpu: float  # seconds, of its children too
    wall: float
    foreign: float | None
    max_rss_mb: float  # of the largest of its processes
    output: str  # stdout and stderr


def synchronize() -> None:
    """Wait for what was queued on the GPU, if torch is loaded and there is one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[], object]) -> Timing:
    synchronize()
    busy, cpu, wall = _busy_seconds(), _own_seconds(), time.perf_counter()
    call()
    synchronize()
    cpu, wall = _own_seconds() - cpu, time.perf_counter() - wall
    return Timing(cpu, wall, _foreign(busy, cpu, wall))


def _own_seconds() -> float:
    """CPU seconds of this process and of its children that have ended, as the workers that decode pictures."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the machine started, in steps of about 0.01."""
    try:
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _foreign(busy_before: float | None, own: float, wall: float) -> float | None:
    busy = _busy_seconds()
    if busy is None or busy_before is None or wall <= 0:
        return None
    return max(0.0, busy - busy_before - own) / (wall * (os.cpu_count() or 1))


# ---- comparisons ---------------------------------------------------------------------------------------------------


def rounds(variants: Mapping[str, Callable[[], object]], count: int = 5, warm_up: int = 1) -> dict[str, list[Timing]]:
    """Timings of each variant in `count` rounds; every other round runs them in the opposite order.

    Use at least 5 rounds, and at least 9 for calls below 0.3 s.
    """
    for call in variants.values():
        for _ in range(warm_up):
            call()
    timings: dict[str, list[Timing]] = {name: [] for name in variants}
    for turn in range(count):
        for name in list(variants)[:: -1 if turn % 2 else 1]:
            timings[name].append(timed(variants[name]))
    return timings


def quiet(timings: dict[str, list[Timing]]) -> dict[str, list[Timing]]:
    """The rounds in which no variant was disturbed. Claim nothing from fewer than 3."""
    calm = [i for i, turn in enumerate(zip(*timings.values())) if all((t.foreign or 0.0) < QUIET for t in turn)]
    return {name: [values[i] for i in calm] for name, values in timings.items()}


def summary(values: Sequence[float]) -> dict[str, float]:
    """{"median", "min", "max", "rounds"}"""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def paired_ratio(baseline: Sequence[float], ours: Sequence[float]) -> dict[str, float | bool]:
    """How many times less ours costs, round by round: median, quartiles, and whether it is a win."""
    ratios = [theirs / own for theirs, own in zip(baseline, ours, strict=True)]
    if len(ratios) < 2:
        raise ValueError(f"a ratio needs at least 2 rounds for its quartiles, got {len(ratios)}")
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": median, "lower": lower, "upper": upper, "win": lower > 1}


def compared(timings: dict[str, list[Timing]], baseline: str, clock: str = "cpu") -> dict[str, dict]:
    """For each variant its seconds, and the paired ratio of the baseline to it. `clock`: 'cpu' or 'wall'."""
    seconds = {name: [getattr(timing, clock) for timing in values] for name, values in timings.items()}
    return {
        name: {"seconds": summary(values), "ratio": paired_ratio(seconds[baseline], values)}
        for name, values in seconds.items()
    }


# ---- whole processes -----------------------------------------------------------------------------------------------

# The kernel counts a parent's memory as its child's until exec; a small parent in between keeps that out.
_LAUNCHER = """
import json, os, sys, time
path, *command = sys.argv[1:]
wall = time.perf_counter()
pid = os.posix_spawnp(command[0], command, os.environ)
status, usage = os.wait4(pid, 0)[1:]
wall = time.perf_counter() - wall
with open(path, "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss], file)
"""


def process(command: Sequence[str | Path], env: dict[str, str] | None = None, cwd: Path | None = None) -> Process:
    """Run a program to its end and say what it cost.

    Args:
        env: variables to set beside those of this process.
    Raises: RuntimeError: if it fails, with the end of its output.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "usage.json"
        busy = _busy_seconds()
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(report), *words],
            env=os.environ | (env or {}), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if not report.exists():
            raise RuntimeError(f"{words[0]} could not be started: {done.stdout[-500:]}")
        code, cpu, wall, rss = json.loads(report.read_text())
        foreign = _foreign(busy, cpu, wall)
    if code:
        raise RuntimeError(f"{' '.join(words)} ended with {code}:\n{done.stdout[-2000:]}")
    return Process(cpu, wall, foreign, rss * (1 if sys.platform == "darwin" else 1024) / 2**20, done.stdout)


def process_rounds(commands: Mapping[str, Sequence[str | Path]], count: int = 3, warm_up: int = 1) -> dict[str, list]:
    """`rounds` for whole programs: {name: [Process]}."""
    found: dict[str, list[Process]] = {name: [] for name in commands}
    for turn in range(-warm_up, count):
        for name in list(commands)[:: -1 if turn % 2 else 1]:
            cost = process(commands[name])
            found[name] += [cost] if turn >= 0 else []
    return found


@contextlib.contextmanager
def busy_process(count: int = 1) -> Iterator[None]:
    """While the block runs, `count` other processes use all they get of a core each."""
    others = [subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


# ---- memory --------------------------------------------------------------------------------------------------------


def reset_gpu_peak() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def gpu_peak_mb() -> float | None:
    """The most that tensors have held on the GPU since `reset_gpu_peak`; None without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated() / 2**20


# ---- the machine ---------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What a reader has to know of the machine and the libraries to judge a number."""
    import torch

    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "flags": [flag for flag in FLAGS if flag in _cpuinfo("flags").split() + _cpuinfo("Features").split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "load": os.getloadavg()[0],
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }
    if torch.cuda.is_available():
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return facts


def _cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo, or ''."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split("\t")[0].strip() == key), "")


def _cpu_model() -> str:
    family = " ".join(f"{key} {value}" for key in ("cpu family", "model") if (value := _cpuinfo(key)))
    return f"{_cpuinfo('model name') or platform.processor() or platform.machine()} ({family or 'unknown family'})"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- ceilings ------------------------------------------------------------------------------------------------------


def ceilings(device: str = "cpu", repeats: int = 5) -> dict[str, float]:
    """The most this device does of what networks are made of, in GFLOP/s: matrix products and 3x3 convolutions.

    Quote shares of what this gives in the same run. On a CPU with one thread the clock is CPU seconds.
    """
    import torch

    clock = "cpu" if device == "cpu" and torch.get_num_threads() == 1 else "wall"
    n, batch = (1024, 16) if device == "cpu" else (8192, 256)
    found = {}

    def rate(operation: Callable[..., object], operands: tuple, flops: int) -> float:
        operation(*operands)  # kernels are chosen
        seconds = min(getattr(timed(lambda: operation(*operands)), clock) for _ in range(repeats))
        return flops / seconds / 1e9

    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.randn(n, n, device=device, dtype=dtype)
        images = torch.randn(batch, 128, 16, 16, device=device, dtype=dtype)
        kernel = torch.randn(128, 128, 3, 3, device=device, dtype=dtype)
        found[f"gemm_{name}"] = rate(torch.matmul, (matrix, matrix), 2 * n**3)
        convolve = functools.partial(torch.nn.functional.conv2d, padding=1)
        found[f"conv_{name}"] = rate(convolve, (images, kernel), 2 * 9 * 128 * 128 * 256 * batch)
    return found


# ---- reports -------------------------------------------------------------------------------------------------------


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; floats with three significant digits."""
    lines = [list(head), ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def ratio_text(ratio: dict[str, Any]) -> str:
    """'1.42 (1.38 to 1.45)': median and quartiles."""
    return f"{ratio['median']:.2f} ({ratio['lower']:.2f} to {ratio['upper']:.2f})"


def write_report(path: Path, results: dict[str, Any]) -> None:
    """Results with the machine they come from, as JSON; timings may be in them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine()} | results, indent=1, default=asdict) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="also write the facts there, as JSON")
    args = parser.parse_args()
    prepare_threads(args.threads)
    facts, limits = machine(), ceilings(args.device)
    print(markdown(["machine", ""], list(facts.items())))
    print(markdown(["ceiling", "GFLOP/s"], list(limits.items())))
    if args.output:
        write_report(args.output, {"ceilings": limits})


if __name__ == "__main__":
    run_main(main)
