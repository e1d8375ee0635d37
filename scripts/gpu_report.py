"""Everything that needs a GPU, one after the other, and one report: `make gpu`.

    python scripts/gpu_report.py -o runs/gpu

The report, gpu.md, has each command with its time, its exit code and the end of its output, and results.json the same
for programs. Without a GPU it says so and runs the half that needs none: the same programs on the CPU, small or with
`--help`, so that none of them is broken when a GPU is there, and the steps on the pretend device of the tests.

The limits of all checks together are the 12 minutes. One that ran out of time is a failure where a GPU's number is
missing by it, and on a busy CPU none, if what it had done until then went well.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ldm.utils.runtime import run_main

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 12 * 60.0  # seconds for all of it
KEPT_LINES = 40


@dataclass(frozen=True)
class Check:
    """A program to run.

    Attributes:
        seconds: the most that it gets.
        partial: whether a part of it is worth something, because it ends at the first failure.
    """

    name: str
    command: list[str]
    seconds: float
    partial: bool = False


@dataclass(frozen=True)
class Result:
    name: str
    command: str
    seconds: float
    code: int | None  # None = stopped for its time
    output: str
    partial: bool = False

    @property
    def failed(self) -> bool:
        return self.code != 0 and not (self.code is None and self.partial)

    @property
    def verdict(self) -> str:
        """One line."""
        if self.code is None:
            what = "all that it had done by then was well" if self.partial else "a failure"
            return f"out of time after {self.seconds:.0f} s: {what}"
        return f"failed ({self.code})" if self.code else "ok"


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


def checks(gpu: bool) -> list[Check]:
    """What to run, quick ones first; their limits add up to `BUDGET` at most."""
    tests = python("-m", "pytest", "-q")
    if not gpu:
        programs = ("train_step", "sample", "gpu_kernels")
        helps = [Check(f"{name} can be started", python(f"benchmarks/{name}.py", "--help"), 60) for name in programs]
        kernels = python("benchmarks/gpu_kernels.py", "--device", "cpu")
        pretend = [*tests, "-x", "-v", "tests/runs/test_pretend_cuda.py"]
        return [
            *helps,
            Check("kernels, small", kernels, 120, partial=True),
            Check("steps on the pretend device", pretend, 420, partial=True),
        ]
    step = ["benchmarks/train_step.py", "--device", "cuda", "--batch", "64", "--steps-per-round", "20"]
    precisions = [
        Check(f"training step, {precision}", python(*step, "--precision", precision), 90)
        for precision in ("bf16", "fp16")
    ]
    return [
        Check("tests", [*tests, "-m", "gpu"], 180),
        Check("kernels", python("benchmarks/gpu_kernels.py", "--device", "cuda"), 300),
        *precisions,
        Check(
            "sampling", python("-m", "ldm", "generate", "enclosed glyph", "--grid", "8x8", "-o", "{out}/grid.png"), 60
        ),
    ]


def run(check: Check, out: Path, seconds: float) -> Result:
    """Run a check, and end it after so many seconds with all that it has started."""
    command = [word.replace("{out}", str(out)) for word in check.command]
    began, said = time.monotonic(), out / "output.txt"  # a file: what has been said is there, whoever still writes
    with said.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    shown = " ".join(["python" if word == sys.executable else word for word in command])
    lines = said.read_text(encoding="utf-8", errors="replace").splitlines()[-KEPT_LINES:]
    said.unlink()
    return Result(check.name, shown, time.monotonic() - began, code, "\n".join(lines), check.partial)


def end(process: subprocess.Popen) -> None:
    """Kill a process that leads its session, if it is not done, and what it has left running."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


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
        table += f"| {one.name} | {one.verdict} | {one.seconds:.0f} |\n"
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
        print(f"{result.name}: {result.verdict} ({result.seconds:.0f} s)", flush=True)
        (out / "gpu.md").write_text(markdown(device, results), encoding="utf-8")
        (out / "results.json").write_text(json.dumps([asdict(one) for one in results], indent=1), encoding="utf-8")
    print(out / "gpu.md")
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    run_main(main)
