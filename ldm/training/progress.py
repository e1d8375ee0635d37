"""The line of progress: on a terminal a bar that is written over, in a log file a line of all numbers now and then."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.config.settings import TrainOptions
from ldm.utils.runtime import peak_memory
from ldm.utils.terminal import LiveLine, bar, duration_text


class Meter:
    """Speed, waiting and losses between two lines of progress; synchronizes with the device only when a line is due.

    The time left is reckoned from the median over all lines, so that a slow stretch does not decide it.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        train: TrainOptions,
        write_log: Callable[[dict], None],
        live: LiveLine | None = None,
    ):
        self.accelerator, self.train, self.write_log, self.step = accelerator, train, write_log, 0
        self.live, self._losses = live or LiveLine(StringIO()), ""
        self._loss_before: float | None = None
        self._step_seconds: list[float] = []  # of each line
        self._clear()

    def _clear(self) -> None:
        self.losses: list[Tensor] = []
        self.metrics: dict[str, list[Tensor]] = {}
        self.norm: Tensor | float = 0.0
        self.wait, self.idle, self.rate, self.steps = 0.0, 0.0, 0.0, 0
        self.begin = time.perf_counter()
        self._mark: float | None = None  # the end of the last step

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as waiting for data."""
        start = time.perf_counter()
        yield
        self.wait += time.perf_counter() - start

    def add(self, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        self.losses.append(loss.detach())
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append(value.detach())

    def end_step(self, step: int, norm: Tensor | None, rate: float) -> None:
        self.step, self.norm, self.rate, self.steps = step, norm, rate, self.steps + 1
        self._mark = time.perf_counter()
        self._show_bar()

    def _show_bar(self) -> None:
        seconds = self._step_seconds or [(time.perf_counter() - self.begin - self.idle) / self.steps]
        left = duration_text((self.train.num_steps - self.step) * statistics.median(seconds))
        self.live.show(f"{bar(self.step, self.train.num_steps)}  {left} left{self._losses}")

    def pause(self) -> None:
        """Leave the time since the last step (reports, saving) out of the speed."""
        now = time.perf_counter()
        if self._mark is None:
            self.begin = now
        else:
            self.idle += now - self._mark
            self._mark = now

    def show_first(self) -> None:
        """Print how long the first step took; nothing is logged or cleared, and its warm-up is not in later lines."""
        seconds = time.perf_counter() - self.begin
        if self.accelerator.is_main_process and self.train.log_every > 1 and not self.live.visible:
            most = duration_text((self.train.num_steps - self.step) * seconds)
            print(f"step {self.step}/{self.train.num_steps}  {seconds:.2g} s for the first: at most {most}", flush=True)

    def show(self) -> None:
        """Print one line, log it and start over. All processes must call it: losses are averaged over them."""
        losses = self.losses or [torch.tensor(math.nan, device=self.accelerator.device)]  # every step was skipped
        gathered = self.accelerator.reduce(torch.stack(losses).mean(), "mean")
        entry = {"step": self.step, "loss": gathered.item(), "lr": self.rate, "grad_norm": float(self.norm)}
        entry |= {name: torch.stack(values).float().mean().item() for name, values in self.metrics.items()}
        seconds = max(1e-9, time.perf_counter() - self.begin - self.idle)
        entry["images_per_second"] = self.steps * self.train.batch_size / seconds
        entry["data_wait"] = self.wait / seconds
        entry["memory_mb"] = _peak_memory_mb(self.accelerator.device)
        self._step_seconds.append(seconds / self.steps)
        left = (self.train.num_steps - self.step) * statistics.median(self._step_seconds)
        if self.accelerator.is_main_process:
            self.write_log(entry)
            self._losses = f"  loss {entry['loss']:.4f}{self._trend(entry['loss'])}"
            if not self.live.visible:
                print(self._line(entry, left), flush=True)
        self._clear()

    def _trend(self, loss: float) -> str:
        """Whether the loss fell since the last one."""
        before, self._loss_before = self._loss_before, loss
        return "" if before is None else " down" if loss < before else " up"

    def _line(self, entry: dict[str, float], left: float) -> str:
        speed = entry["images_per_second"]
        numbers = [f"loss {entry['loss']:.4f}", *(f"{name} {entry[name]:.4g}" for name in self.metrics)]
        return "  ".join(
            [
                f"step {self.step}/{self.train.num_steps}",
                f"ETA {duration_text(left)}",
                f"{speed:.{0 if speed >= 10 else 1}f} images/s",
                *numbers,
                f"lr {self.rate:.2e}",
                f"grad norm {entry['grad_norm']:.2f}",
                f"data wait {entry['data_wait']:.0%}",
                f"memory {entry['memory_mb']:.0f} MB",
            ]
        )


def _peak_memory_mb(device: torch.device) -> float:
    """Of the device's memory, or the most that this process has used so far; of an Apple GPU what it uses now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    return peak_memory() / 2**20
