"""What a run says: lines on the terminal, log.jsonl and trackers such as TensorBoard. None of it ends a training."""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import psutil
from accelerate import Accelerator

from ldm.utils.terminal import LiveLine, duration_text


def shortened(numbers: dict[str, float], most: int = 3) -> str:
    """The first validation numbers, of the EMA weights where there are any; log.jsonl has all of them."""
    weights = "ema/" if any(name.startswith("ema/") for name in numbers) else "raw/"
    own = {name.removeprefix(weights): value for name, value in numbers.items() if name.startswith(weights)}
    return "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in [*own.items()][:most])


class RunLog:
    """The log of one run; only the main process prints and writes.

    Args:
        accelerator: with the trackers that are installed.
        run: the run's folder.
        wanted: `train.report_to`.
    """

    def __init__(self, accelerator: Accelerator, run: Path, wanted: Sequence[str]):
        self.accelerator, self.path = accelerator, run / "log.jsonl"
        self.trackers = [name for name in wanted if name != "none"]
        self._warned: set[str] = set()
        self.live = LiveLine(sys.stdout if accelerator.is_main_process else StringIO())
        self.began = psutil.Process().create_time()  # of this training, in seconds since 1970
        for name in set(self.trackers) - set(map(str, accelerator.log_with)):
            self.say(f"train.report_to: {name} is not installed, so only log.jsonl is written; pip install {name}")

    def say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            self.live.clear()
            print(text, flush=True)

    def write(self, entry: dict[str, float]) -> None:
        """A line of log.jsonl and of the trackers; `entry` has a `step`."""
        finite = {k: v if math.isfinite(v) else None for k, v in entry.items()}  # JSON has no infinity
        with self.tolerated(OSError, f"cannot write {self.path}"):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(finite) + "\n")
        if self.accelerator.log_with:
            with self.tolerated(Exception, f"train.report_to {', '.join(self.trackers)} failed"):
                self.accelerator.log({k: v for k, v in entry.items() if k != "step"}, step=entry["step"])

    def compare_with_plan(self, step: int, planned: float) -> None:
        """The minutes since this training began, imports and caches included, beside those of `ldm plan`."""
        minutes = (time.time() - self.began) / 60
        self.write({"step": step, "minutes": minutes, "planned_minutes": planned})
        took, wanted = duration_text(60 * minutes), duration_text(60 * planned)
        self.say(f"took {took}, {minutes / planned:.2f} times the {wanted} that were planned")

    @contextmanager
    def tolerated(self, kind: type[Exception], text: str) -> Iterator[None]:
        """Print an error beside the training once, as a warning, and continue."""
        try:
            yield
        except kind as error:
            if text not in self._warned:
                self._warned.add(text)
                self.live.clear()
                print(f"warning: {text} ({error}); training continues", flush=True)
