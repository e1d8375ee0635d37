"""Everything that needs a GPU, one after the other, and one report: `make gpu`.

    python scripts/gpu_report.py -o runs/gpu

The report, gpu.md, has each command with its time, its exit code and the end of its output, and results.json the same
for programs. Without a GPU it says so and runs the half that needs none: the steps on the pretend device of the tests,
and the same programs on the CPU with `--help`, so that none of them is broken when a GPU is there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ldm.utils.runtime import run_main

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 12 * 60.0  # seconds for all of it
KEPT_LINES = 40


@dataclass(frozen=True)
class Check:
    """A program to run, and the most seconds that it gets."""

    name: str
    command: list[str]
    seconds: float


@dataclass(frozen=True)
class Result:
    name: str
    command: str
    seconds: float
    code: int | None  # None = stopped for its time
    output: str


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


def checks(gpu: bool) -> list[Check]:
    tests = python("-m", "pytest", "-q")
    pretend = Check("steps on the pretend device", [*tests, "tests/runs/test_pretend_cuda.py"], 400)
    if not gpu:
        programs = ("train_step", "sample", "gpu_kernels")
        helps = [Check(f"{name} can be started", python(f"benchmarks/{name}.py", "--help"), 60) for name in programs]
        return [pretend, *helps, Check("kernels, small", python("benchmarks/gpu_kernels.py", "--device", "cpu"), 120)]
    step = ["benchmarks/train_step.py", "--device", "cuda", "--batch", "64", "--steps-per-round", "20"]
    precisions = [
        Check(f"training step, {precision}", python(*step, "--precision", precision), 90)
        for precision in ("bf16", "fp16")
    ]
    return [
        Check("tests", [*tests, "-m", "gpu"], 120),
        Check("kernels", python("benchmarks/gpu_kernels.py", "--device", "cuda"), 240),
        *precisions,
        Check(
            "sampling", python("-m", "ldm", "generate", "enclosed glyph", "--grid", "8x8", "-o", "{out}/grid.png"), 60
        ),
        pretend,
    ]


def run(check: Check, out: Path, seconds: float) -> Result:
    command = [word.replace("{out}", str(out)) for word in check.command]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        code, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        code, output = None, "".join(part.decode() for part in (late.stdout, late.stderr) if part)
    shown = " ".join(["python" if word == sys.executable else word for word in command])
    return Result(check.name, shown, time.monotonic() - began, code, "\n".join(output.splitlines()[-KEPT_LINES:]))


def device_name() -> str:
    """The GPU's name with the versions, "" without one."""
    import torch

    if not torch.cuda.is_available():
        return ""
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def markdown(device: str, results: list[Result]) -> str:
    head = f"# GPU report\n\n{device or 'No GPU here: only the half that needs none was run.'}\n\n"
    table = "| check | result | seconds |\n|---|---|---|\n"
    for one in results:
        word = "out of time" if one.code is None else "ok" if one.code == 0 else f"failed ({one.code})"
        table += f"| {one.name} | {word} | {one.seconds:.0f} |\n"
    return (
        head + table + "".join(f"\n## {one.name}\n\n`{one.command}`\n\n```text\n{one.output}\n```\n" for one in results)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/gpu"))
    out = parser.parse_args().output.absolute()
    out.mkdir(parents=True, exist_ok=True)
    device, began, results = device_name(), time.monotonic(), []
    print(device or "no GPU here: the half that needs none", flush=True)
    for check in checks(bool(device)):
        left = BUDGET - (time.monotonic() - began)
        result = run(check, out, max(1.0, min(check.seconds, left)))
        results.append(result)
        print(f"{result.name}: {result.seconds:.0f} s, exit code {result.code}", flush=True)
        (out / "gpu.md").write_text(markdown(device, results), encoding="utf-8")
        (out / "results.json").write_text(json.dumps([asdict(one) for one in results], indent=1), encoding="utf-8")
    print(out / "gpu.md")
    return int(any(result.code != 0 for result in results))


if __name__ == "__main__":
    run_main(main)
