"""One loop for all three parts. It asks a task for a loss and never sees sigma, prompts or pixels.

Everything random in a step is a function of (seed, step): which samples, their captions and crops, the noise and
times of the whole global batch (of which each process takes its rows), and, with the rank, the seed of dropout. So
validation cannot disturb training, a resumed run needs no RNG state, and without dropout the losses do not depend on
the number of processes.
"""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ldm import checkpoint
from ldm.averaging import Average
from ldm.config import OptimOptions, RunSettings, TrainOptions
from ldm.errors import UserError
from ldm.optimizer import build_optimizer, native_bf16
from ldm.progress import Meter
from ldm.runs import record, replace_text

log = logging.getLogger("ldm")


@dataclass(frozen=True)
class Rows:
    """The part of a global batch that one process handles in one accumulation step."""

    step: int
    start: int
    stop: int
    batch_size: int  # global


@dataclass(frozen=True)
class Sample:
    """One place in the stream of samples: which item, in which epoch."""

    index: int
    epoch: int


class Task(Protocol):
    """What a trainer teaches: a module whose forward gives the loss, and the batches it eats."""

    module: nn.Module  # forward(**batch) -> (loss, {name: scalar tensor}); everything trainable is in it
    model: nn.Module  # the part of it that is kept: EMA follows its parameters
    num_samples: int
    find_unused_parameters: bool
    channels_last: bool  # whether that layout pays on a CPU in bf16; on CUDA it does

    def batch(self, samples: list[Sample], rows: Rows) -> dict[str, Tensor]:
        """CPU tensors for these samples; may depend on (seed, step) and the samples, never on the rank."""
        ...

    def report(self, folder: Path, label: str) -> dict[str, float]:
        """Validation numbers of the model as it is now, and pictures written into `folder`; main process only."""
        ...

    def finish(self, folder: Path) -> None:
        """Write the finished component(s) in stock layout into an empty folder; main process only."""
        ...


def mix(*numbers: int) -> int:
    """A 63-bit seed from several integers; equal inputs give equal seeds on every machine."""
    return int(np.random.SeedSequence(numbers).generate_state(2, np.uint32).astype(np.uint64) @ [1, 2**31])


def generator_for(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(*numbers))


def draw_rows(rows: Rows, shape: tuple[int, ...], *seed: int) -> Tensor:
    """This process's rows of one standard normal tensor for the whole global batch."""
    return torch.randn(rows.batch_size, *shape, generator=generator_for(*seed, rows.step))[rows.start : rows.stop]


class Batches(Dataset):
    """Maps `Rows` to a batch: sample j of step s is place s * batch_size + j in an endless row of shuffled epochs."""

    def __init__(self, task: Task, seed: int):
        self.task, self.seed = task, seed
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, rows: Rows) -> dict[str, Tensor]:
        first = rows.step * rows.batch_size
        places = [divmod(first + j, self.task.num_samples) for j in range(rows.start, rows.stop)]
        return self.task.batch([Sample(int(self._order(epoch)[place]), epoch) for epoch, place in places], rows)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) > 2:  # a batch spans few epochs; keep memory flat over thousands of them
                self._orders.clear()
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.task.num_samples)
        return self._orders[epoch]


def rows_of(train: TrainOptions, first_step: int, rank: int, world: int) -> Iterator[Rows]:
    """The rows that one process handles, step by step, accumulation step by accumulation step."""
    share = train.batch_size // (world * train.gradient_accumulation_steps)
    for step in range(first_step, train.num_steps):
        for micro in range(train.gradient_accumulation_steps):
            start = (micro * world + rank) * share
            yield Rows(step, start, start + share, train.batch_size)


def lr_factor(optim: OptimOptions, step: int, num_steps: int) -> float:
    """The learning rate at a global step (0-based) as a share of `optim.lr`: linear warm-up, then the schedule."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return 1.0
    if optim.schedule == "cosine":
        progress = (step - optim.warmup_steps) / max(1, num_steps - optim.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * progress))
    decay_steps = max(1, round(optim.decay_fraction * num_steps))
    return min(1.0, (num_steps - step) / decay_steps)


def precision(wanted: str, device: torch.device) -> str:
    """'auto' as the best the device does natively: bf16 where the GPU or the CPU (AMX, AVX512) has it, else fp32."""
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("train.mixed_precision fp16 needs a GPU; on a CPU use auto, bf16 or no")
    if wanted != "auto":
        return wanted
    return "bf16" if native_bf16(device) else "no"


def checkpoint_gradients(module: nn.Module) -> nn.Module:
    """Have every part that can compute its activations again in the backward pass, to keep fewer; returns `module`."""
    for part in module.modules():
        if isinstance(part, ModelMixin) and part._supports_gradient_checkpointing:
            part.enable_gradient_checkpointing()
    return module


def start_world() -> PartialState:
    """Join the processes that the launcher started. Without CUDA, several processes means several CPU processes."""
    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    patience = {"timeout": timedelta(hours=12)} if several else {}  # others wait while one builds the caches
    state = PartialState(cpu=asked_for_cpu or (several and not torch.cuda.is_available()), **patience)
    check_world(state.num_processes)
    return state


def check_world(world: int) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process without a word; say so instead."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode().split("\0")
        asked = int(words[words.index("--num_processes") + 1])
    except (OSError, ValueError, IndexError):
        return
    if asked > 1 and world == 1 and any("accelerate" in word for word in words):
        raise UserError(
            f"accelerate was asked for {asked} processes and started 1; on CPU use: "
            f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {asked} ..."
        )


class Trainer:
    """Fits one task in one run directory: `fit()` trains, reports, saves, resumes and writes `final/`."""

    def __init__(self, task: Task, settings: RunSettings, run: Path):
        self.task, self.settings, self.run, self.train = task, settings, run, settings.train
        run.mkdir(parents=True, exist_ok=True)
        loggers = [name for name in self.train.report_to if name != "none"]
        state = start_world()
        self.accelerator = Accelerator(
            cpu=state.device.type == "cpu",
            mixed_precision=precision(self.train.mixed_precision, state.device),
            log_with=loggers or None,
            project_dir=run / "logs",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=task.find_unused_parameters)],
        )
        for name in set(loggers) - {str(getattr(kind, "value", kind)) for kind in self.accelerator.log_with}:
            self._log(f"train.report_to: {name} is not installed, so only log.jsonl is written; pip install {name}")
        world = self.accelerator.num_processes
        if self.train.batch_size % (world * self.train.gradient_accumulation_steps):
            raise UserError(
                f"train.batch_size {self.train.batch_size} is the global batch and must be a multiple of processes x "
                f"gradient_accumulation_steps = {world} x {self.train.gradient_accumulation_steps}"
            )
        task.module.to(self.accelerator.device)
        if self.train.gradient_checkpointing:
            checkpoint_gradients(task.module)
        if self.accelerator.mixed_precision != "no" and (task.channels_last or self.accelerator.device.type == "cuda"):
            task.module.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(task.module, settings.optim)
        self.ema = Average(task.model.parameters() if self.train.ema_decay else [], decay=self.train.ema_decay)
        self.step = 0

    def fit(self, resume: str = "auto") -> None:
        """Train to `num_steps` and write `final/`. `resume`: 'auto', 'never', or a checkpoint's folder."""
        self._resume(resume)
        first = self.step
        if self.accelerator.is_main_process:
            record(self.run, self.settings)
        module, optimizer = self.accelerator.prepare(self.task.module, self.optimizer)
        if self.train.compile:
            module = torch.compile(module)
        if self.accelerator.is_main_process and self.accelerator.log_with:
            self.accelerator.init_trackers("ldm")
        meter = Meter(self.accelerator, self.train, self.write_log)
        self._log(
            f"{self.run}: step {self.step} of {self.train.num_steps}, {self.accelerator.num_processes} process(es), "
            f"{self.accelerator.mixed_precision} precision, {self.accelerator.device}"
        )
        if self.step == 0:
            self._report()
        for micros in self._steps():
            self._step(module, optimizer, micros, meter)
            last = self.step == self.train.num_steps
            if self.step % self.train.log_every == 0 or last:
                meter.show()
            if last or self.train.sample_every and self.step % self.train.sample_every == 0:
                self._report()
                meter.pause()
            if last or self.step % self.train.save_every == 0:
                self.save()
                meter.pause()
        if self.accelerator.is_main_process:
            self._finish(trained=self.step > first)
            if self.train.planned_minutes and first == 0:
                self._compare_with_plan(self.train.planned_minutes)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _steps(self) -> Iterator[Iterator[dict[str, Tensor]]]:
        """The micro-batches of each remaining step, on the device; the loader counts on where the run stopped."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        loader = iter(
            DataLoader(
                Batches(self.task, self.settings.seed),
                sampler=rows_of(self.train, self.step, rank, world),
                batch_size=None,
                num_workers=self.train.num_workers,
                pin_memory=self.accelerator.device.type == "cuda",
            )
        )
        for _ in range(self.step, self.train.num_steps):
            yield (next(loader) for _ in range(self.train.gradient_accumulation_steps))

    def _step(self, module, optimizer, micros, meter: "Meter") -> None:
        accumulation = self.train.gradient_accumulation_steps
        rate = self.settings.optim.lr * lr_factor(self.settings.optim, self.step, self.train.num_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(mix(self.settings.seed, self.step, self.accelerator.process_index))  # dropout
        self.task.module.train()
        for micro in range(accumulation):
            with meter.waiting():
                batch = {
                    key: value.to(self.accelerator.device, non_blocking=True) for key, value in next(micros).items()
                }
            with self.accelerator.no_sync(module) if micro + 1 < accumulation else nullcontext():
                loss, metrics = module(**batch, progress=self.step / self.train.num_steps)
                self.accelerator.backward(loss / accumulation)
            meter.add(loss, metrics)
        norm = self.accelerator.clip_grad_norm_(self.task.module.parameters(), self.settings.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        if self.train.ema_decay:
            self.ema.step(self.task.model.parameters())
        self.step += 1
        meter.end_step(self.step, norm, rate)

    def save(self) -> None:
        """Write a checkpoint and delete all but the newest `keep_checkpoints`; refuses non-finite weights."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        tensors = {"model": _trained(self.task.module), "optimizer": self._optimizer_tensors()}
        if self.train.ema_decay:
            tensors["ema"] = dict(zip(_names(self.task.model), self.ema.shadow_params, strict=True))
        if not all(torch.isfinite(tensor).all() for tensor in tensors["model"].values()):
            raise UserError(f"weights became non-finite before step {self.step}; lower optim.lr, then --resume auto")
        folder = self.run / "checkpoints"
        state = {"step": self.step, "seed": self.settings.seed, "ema_steps": self.ema.optimization_step}
        checkpoint.save(folder / checkpoint.name(self.step), tensors, state)
        checkpoint.prune(folder, self.train.keep_checkpoints)

    def _resume(self, resume: str) -> None:
        folder = self.run / "checkpoints"
        found = None if resume == "never" else checkpoint.newest(folder) if resume == "auto" else Path(resume)
        if found is None:
            if others := checkpoint.saved(folder):
                fault = (
                    "" if resume == "never" else f", none whole ({others[-1].name}: {checkpoint.verify(others[-1])})"
                )
                raise UserError(f"{self.run} already holds checkpoints{fault}; start anew with another --output-dir")
            return
        tensors, state = checkpoint.load(found)
        if not {"model", "optimizer"} <= tensors.keys() or state.get("seed") != self.settings.seed:
            seeds = f"seed {state.get('seed')}, now {self.settings.seed}"
            raise UserError(f"{found} is no checkpoint of this run ({seeds}): put the seed back, or start another run")
        _load(self.task.module, tensors["model"], found)
        if self.train.ema_decay:
            ema = tensors.get("ema") or dict(self.task.model.named_parameters())
            _fill(self.ema.shadow_params, [ema[name] for name in _names(self.task.model)])
        self.ema.optimization_step = state["ema_steps"]
        self._load_optimizer(tensors["optimizer"], found)
        self.step = state["step"]
        if self.accelerator.is_main_process:
            self._set_aside(folder)
        self._log(f"resumed {found}")

    def _set_aside(self, folder: Path) -> None:
        """Checkpoints and log lines beyond the resumed step are damaged, or belong to another course of training."""
        for path in checkpoint.saved(folder):
            if path.name > checkpoint.name(self.step):
                aside = path.with_name(f"superseded-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                self._log(
                    f"{path} set aside as {aside.name}: {checkpoint.verify(aside) or 'an earlier one was asked for'}"
                )
        log_file = self.run / "log.jsonl"
        if log_file.exists():
            lines = [line for line in log_file.read_text().splitlines() if json.loads(line)["step"] <= self.step]
            replace_text(log_file, "".join(f"{line}\n" for line in lines))

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        names = {parameter: name for name, parameter in self.task.module.named_parameters()}
        return {f"{key}/{names[p]}": value for p, state in self.optimizer.state.items() for key, value in state.items()}

    def _load_optimizer(self, tensors: dict[str, Tensor], source: Path) -> None:
        if any(name.startswith("momentum_buffer/") for name in tensors) != (self.settings.optim.name == "muon"):
            raise UserError(f"{source} belongs to another optim.name than {self.settings.optim.name}: put it back")
        parameters = dict(self.task.module.named_parameters())
        for full, value in tensors.items():
            key, name = full.split("/", 1)
            parameter = parameters[name]
            if key != "step":  # moments must lie in memory as their parameter does
                value = torch.empty_like(parameter).copy_(value)
            self.optimizer.state[parameter][key] = (
                value if key == "step" and parameter.device.type == "cpu" else value.to(parameter.device)
            )

    def _report(self) -> None:
        """Pictures and validation of the raw and the EMA weights, by the main process, outside the training RNG."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.task.module.eval()
            folder = self.run / "samples"
            folder.mkdir(exist_ok=True, parents=True)
            numbers = {f"raw/{k}": v for k, v in self.task.report(folder, f"{self.step:08d}-raw").items()}
            if self.train.ema_decay:
                with self._ema_weights():
                    numbers |= {f"ema/{k}": v for k, v in self.task.report(folder, f"{self.step:08d}-ema").items()}
            self.write_log({"step": self.step} | numbers)
            said = [f"{k} {v:.4g}" for k, v in numbers.items() if k.count("/") == 1]  # the parts of a number: log only
            self._log("  ".join([f"step {self.step} validation", *said]))
        self.accelerator.wait_for_everyone()

    def _ema_weights(self):
        return self.ema.shown(self.task.model.parameters())

    def _finish(self, trained: bool) -> None:
        """Write `final/`; leave it alone when it is whole and nothing was trained since."""
        if not trained and checkpoint.verify(self.run / "final") is None:
            self._log(f"already finished: {self.run / 'final'}")
            return
        self.task.module.eval()
        with self._ema_weights() if self.train.ema_decay else nullcontext():
            with checkpoint.staged(self.run / "final") as folder:
                self.task.finish(folder)
        self._log(f"finished: {self.run / 'final'}")

    def _compare_with_plan(self, planned: float) -> None:
        """One line: the time since this process started, imports and caches included, beside what `ldm plan` said."""
        minutes = (time.time() - psutil.Process().create_time()) / 60
        self.write_log({"step": self.step, "minutes": minutes, "planned_minutes": planned})
        self._log(f"took {minutes:.1f} min, {minutes / planned:.2f} times the {planned:.1f} min that were planned")

    def write_log(self, entry: dict) -> None:
        known = {k: v if math.isfinite(v) else None for k, v in entry.items()}  # JSON has no infinity
        with open(self.run / "log.jsonl", "a") as file:
            file.write(json.dumps(known) + "\n")
        if self.accelerator.log_with:
            self.accelerator.log({k: v for k, v in entry.items() if k != "step"}, step=entry["step"])

    def _log(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(text, flush=True)


def _fill(targets: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def _trained(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters by name; frozen parts belong to other runs."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _load(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    own = _trained(module)
    if own.keys() != tensors.keys() or any(own[name].shape != value.shape for name, value in tensors.items()):
        raise UserError(
            f"checkpoint {source} belongs to another model; restore its settings, or use another --output-dir"
        )
    _fill(list(own.values()), [tensors[name] for name in own])
