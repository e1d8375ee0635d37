"""One loop for all three parts. It asks a task for a loss and never sees sigma, prompts or pixels.

Everything random in a step is a function of (seed, step): which samples, their captions and crops, the noise and
times of the whole global batch (of which each process takes its rows), and, with the rank, the seed of dropout. So
validation cannot disturb training, a resumed run needs no RNG state, and without dropout the losses do not depend on
the number of processes.
"""

import json
import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor
from torch.utils.data import DataLoader

from ldm.config.settings import RunSettings
from ldm.training.data_order import Batches, batch_slices, derive_seed
from ldm.training.distributed import checkpoint_gradients, precision, start_world
from ldm.training.ema import EMA
from ldm.training.optimizer import build_optimizer, lr_factor
from ldm.training.progress import Meter
from ldm.training.run_directory import record
from ldm.training.state import LOWER_RATE, TrainingState, find, rewind
from ldm.training.task import BatchSlice, Task
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.atomic_files import sweep
from ldm.utils.errors import UserError, out_of_memory
from ldm.utils.signals import Held, ignore_interrupts

MAX_SKIPPED = 3  # steps in a row whose gradients are no finite numbers
MAX_SKIPPED_FP16 = 24  # the scale of fp16 losses begins too high on purpose, and is halved each time


class Trainer:
    """Fits one task in one run directory: `fit()` trains, reports, saves, resumes and writes `final/`."""

    def __init__(self, task: Task, settings: RunSettings, run: Path):
        self.task, self.settings, self.run, self.train = task, settings, run, settings.train
        run.mkdir(parents=True, exist_ok=True)
        self.checkpoints = run / "checkpoints"
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
        # Processes agree on when to stop over a group of their own, so that no GPU has to be waited for.
        self._agreement = torch.distributed.new_group(backend="gloo") if world > 1 else None
        task.module.to(self.accelerator.device)
        if self.train.gradient_checkpointing:
            checkpoint_gradients(task.module)
        if self.accelerator.mixed_precision != "no" and (task.channels_last or self.accelerator.device.type == "cuda"):
            task.module.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(task.module, settings.optim)
        self.ema = EMA(task.model.parameters() if self.train.ema_decay else [], decay=self.train.ema_decay)
        origin = {"settings": settings.model_dump(mode="json"), "identity": task.fingerprints}
        self.state = TrainingState(
            task.module, task.model, self.optimizer, self.ema, origin, scaler=self.accelerator.scaler
        )
        self.batches = Batches(task, settings.seed)
        self.held = Held()
        self._complained: set[str] = set()

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    def fit(self, resume: str = "auto", allow_changed: Collection[str] = ()) -> None:
        """Train to `num_steps` and write `final/`.

        SIGINT and SIGTERM end it after the step at hand, with one checkpoint of it, by `KeyboardInterrupt`.

        Args:
            resume: 'auto' (the newest whole checkpoint, or a fresh start), 'never', or a checkpoint's folder.
            allow_changed: settings that may differ from the checkpoint's though that makes it another training.
        """
        with self.held:
            self._resume(resume, allow_changed)
            if self.accelerator.is_main_process:
                self.state.check_room(self.checkpoints, self.train.keep_checkpoints)
                record(self.run, self.settings)
            self._train()

    def _train(self) -> None:
        first = self.step
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
            if self._stopping():
                return
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
                self.batches,
                sampler=batch_slices(self.train, self.step, rank, world),
                batch_size=None,
                num_workers=self.train.num_workers,
                pin_memory=self.accelerator.device.type == "cuda",
                worker_init_fn=ignore_interrupts,
            )
        )
        for _ in range(self.step, self.train.num_steps):
            yield (next(loader) for _ in range(self.train.gradient_accumulation_steps))

    def _stopping(self) -> bool:
        """Whether any process was asked to stop. Then all of them are, the step is saved, and `held` ends the run."""
        if self._agreement is not None:
            wish = torch.tensor(self.held.pending)
            torch.distributed.all_reduce(wish, torch.distributed.ReduceOp.MAX, group=self._agreement)
            self.held.pending = int(wish)
        if self.held.pending and self.step:
            self.save()
            self.accelerator.wait_for_everyone()  # a launcher ends the others as soon as one is gone
        if self.held.pending:
            self._log(f"stopped after step {self.step}; --resume auto goes on from there")
        return bool(self.held.pending)

    def _step(self, module, optimizer, micros, meter: "Meter") -> None:
        rate = self.settings.optim.lr * lr_factor(self.settings.optim, self.step, self.train.num_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(derive_seed(self.settings.seed, self.step, self.accelerator.process_index))  # dropout
        self.task.module.train()
        try:
            losses = self._accumulate(module, micros, meter)
        except (RuntimeError, MemoryError) as error:
            raise self._explained(error) from error
        norm = self.accelerator.clip_grad_norm_(self.task.module.parameters(), self.settings.optim.grad_clip)
        # A process's gradients are in everyone's mean, so all find the same; one number is read from the device.
        moves = math.isfinite(norm)
        if moves or self.accelerator.scaler is not None:  # which skips by itself, and has to hear of it
            optimizer.step()
        optimizer.zero_grad()
        if moves:
            for loss, metrics in losses:
                meter.add(loss, metrics)
            if self.train.ema_decay:
                self.ema.step(self.task.model.parameters())
        self.state.step += 1
        self._count_skipped(moves)
        meter.end_step(self.step, norm, rate)

    def _accumulate(self, module, micros, meter: "Meter") -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Gradients of one step; the loss and metrics of each of its parts."""
        accumulation, found = self.train.gradient_accumulation_steps, []
        for micro in range(accumulation):
            with meter.waiting():
                batch = {
                    key: value.to(self.accelerator.device, non_blocking=True) for key, value in next(micros).items()
                }
            with self.accelerator.no_sync(module) if micro + 1 < accumulation else nullcontext():
                loss, metrics = module(**batch, progress=self.step / self.train.num_steps)
                self.accelerator.backward(loss / accumulation)
            found.append((loss, metrics))
        return found

    def _count_skipped(self, moved: bool) -> None:
        """Tell of a step that changed nothing, and end a run that no longer moves."""
        self.state.skipped = 0 if moved else self.state.skipped + 1
        if moved:
            return
        scaled = self.accelerator.scaler is not None
        rows = BatchSlice(self.step - 1, 0, self.train.batch_size, self.train.batch_size)
        items = ", ".join(str(sample.index) for sample in self.batches.samples(rows)[:8])
        text = f"the gradient of step {self.step} is not finite (training items {items}{', ...' * (rows.stop > 8)})"
        self._log(f"{text}: step skipped")
        if self.state.skipped == (MAX_SKIPPED_FP16 if scaled else MAX_SKIPPED):
            raise UserError(f"{text}, nor were those before it, {self.state.skipped} in a row: {LOWER_RATE}")

    def _explained(self, error: Exception) -> Exception:
        """What to lower where memory ran out; any other error as it came."""
        if not out_of_memory(error):
            return error
        train = self.train
        each = train.batch_size // (self.accelerator.num_processes * train.gradient_accumulation_steps)
        return UserError(
            f"out of memory in step {self.step + 1} with {each} items at once (train.batch_size {train.batch_size}): "
            f"raise train.gradient_accumulation_steps (now {train.gradient_accumulation_steps}), set "
            "train.gradient_checkpointing true, or lower data.resolution or the model's width, then --resume auto"
        )

    def save(self) -> None:
        """Write a checkpoint; see `TrainingState.save`."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.state.save(self.checkpoints, self.train.keep_checkpoints)

    def _resume(self, wanted: str, allow_changed: Collection[str]) -> None:
        if self.accelerator.is_main_process:
            sweep(self.checkpoints)
        self.accelerator.wait_for_everyone()
        found = find(self.run, wanted)
        notes = self.state.put_back(*found, allow_changed) if found else []
        self.accelerator.wait_for_everyone()  # all have read
        if self.accelerator.is_main_process:
            notes += rewind(self.run, self.step if found else -1)  # the log of a start that was never saved goes too
        for note in notes:
            self._log(note)
        self._log(f"resumed {found[0]}" if found else f"{self.run} holds no checkpoint: a fresh start")

    def _report(self) -> None:
        """Pictures and validation of the raw and the EMA weights, by the main process, outside the training RNG."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.task.module.eval()
            numbers = self._look("raw")
            if self.train.ema_decay:
                with self._ema_weights():
                    numbers |= self._look("ema")
            if not self.held.pending:
                self.write_log({"step": self.step} | numbers)
                said = [f"{k} {v:.4g}" for k, v in numbers.items() if k.count("/") == 1]  # parts of numbers: log only
                self._log("  ".join([f"step {self.step} validation", *said]))
        self.accelerator.wait_for_everyone()

    def _look(self, weights: str) -> dict[str, float]:
        """One report of the weights as they stand; a signal ends it, and a picture that cannot be kept is no loss."""
        numbers: dict[str, float] = {}
        if self.held.pending:
            return numbers
        folder = self.run / "samples"
        with self.held.let_through(), self._tolerated(OSError, f"cannot write to {folder}"):
            folder.mkdir(exist_ok=True, parents=True)
            numbers = self.task.report(folder, f"{self.step:08d}-{weights}")
        return {f"{weights}/{name}": value for name, value in numbers.items()}

    def _ema_weights(self):
        return self.ema.swapped_in(self.task.model.parameters())

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
        """A line of log.jsonl and of the trackers; neither ever ends a training."""
        known = {k: v if math.isfinite(v) else None for k, v in entry.items()}  # JSON has no infinity
        with self._tolerated(OSError, f"cannot write {self.run / 'log.jsonl'}"):
            with open(self.run / "log.jsonl", "a") as file:
                file.write(json.dumps(known) + "\n")
        if self.accelerator.log_with:
            with self._tolerated(Exception, f"train.report_to {', '.join(self.train.report_to)} failed"):
                self.accelerator.log({k: v for k, v in entry.items() if k != "step"}, step=entry["step"])

    @contextmanager
    def _tolerated(self, kind: type[Exception], text: str) -> Iterator[None]:
        """Say once what went wrong beside the training, and go on."""
        try:
            yield
        except kind as error:
            if text not in self._complained:
                self._complained.add(text)
                print(f"warning: {text} ({error}); training goes on", flush=True)

    def _log(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(text, flush=True)
