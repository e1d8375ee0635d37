"""One loop for everything that is trained. It asks a task for a loss and never sees sigma, prompts or pixels.

Everything random in a step is a function of (seed, step): which samples, their captions and crops, the noise and
times of the whole global batch (of which each process takes its rows), and, with the rank, the seed of dropout. So
validation cannot disturb training, a resumed run needs no RNG state, and without dropout the losses do not depend on
the number of processes.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ldm.config.settings import RunSettings
from ldm.training.data_order import Batches, batch_slices, derive_seed, small_buckets
from ldm.training.distributed import (
    build_accelerator,
    checkpoint_gradients,
    explain_out_of_memory,
    loader_workers,
)
from ldm.training.ema import EMA
from ldm.training.engines import build_engine
from ldm.training.optimizer import build_optimizer, lr_factor
from ldm.training.progress import Meter
from ldm.training.resume_rules import comparable
from ldm.training.run_directory import lock_run, record
from ldm.training.run_log import RunLog, shortened
from ldm.training.sharded_state import ShardedState
from ldm.training.state import TrainingState, find, rewind, weights_of
from ldm.training.task import BatchSlice, LossAndMetrics, Task
from ldm.training.validation import VALUES, best_of, due, last_step, summary, wanted
from ldm.training.world import agree, any_of, end_after, enter, numbers_of_main, writes_to
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.atomic_files import remove_stale
from ldm.utils.errors import UserError
from ldm.utils.signals import DeferredSignals, ignore_interrupts

Batch = dict[str, Tensor]
AGREEING, LOADING, OPTIMIZING, WAITING = 0, 1, 10_000, 10_001  # the order of what is done in a step


class Trainer:
    """Fits one task in one run directory: `fit()` trains, reports, saves, resumes and writes `final/`."""

    def __init__(self, task: Task, settings: RunSettings, run: Path):
        self.task, self.settings, self.run, self.train = task, settings, run, settings.train
        run.mkdir(parents=True, exist_ok=True)
        self.checkpoints = run / "checkpoints"
        self.accelerator = build_accelerator(self.train, run, task.find_unused_parameters)
        self.log = RunLog(self.accelerator, run, self.train.report_to)
        self.writes = writes_to(run)  # checkpoints and the finished model; the log and images: the main process
        if self.train.gradient_checkpointing:
            checkpoint_gradients(task.module)
        self.engine = build_engine(self.accelerator, task, settings, self.writes)
        self.module, self.model = self.engine.module, self.engine.model
        self.optimizer = build_optimizer(self.module, settings.optim)
        averaged = self.model.parameters() if self.train.ema_decay else []
        self.ema = EMA(averaged, self.train.ema_decay, offload=self.train.ema_offload)
        known = {"settings": settings.model_dump(mode="json"), "identity": task.fingerprints}
        origin = known | {"images": task.num_samples}
        state = ShardedState if self.engine.sharded else TrainingState
        parts = self.module, self.model, self.optimizer, self.ema
        self.state = state(*parts, origin, self.accelerator.scaler, self.train.async_checkpoints)
        self.batches = Batches(task, settings.seed)
        self.held = DeferredSignals()
        self.validates = False  # whether checkpoints are compared; `fit` decides

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    def fit(self, resume: str = "auto", allow_changed: Collection[str] = ()) -> None:
        """Train to `num_steps` and write `final/`.

        SIGINT and SIGTERM end it after the current step, with a checkpoint of it, by `KeyboardInterrupt`.

        Args:
            resume: 'auto' (the newest valid checkpoint, or a fresh start), 'never', or a checkpoint's folder.
            allow_changed: settings that may differ from the checkpoint's though that makes it another training.
        """
        with self.held, self.log.live, self.state.writer:
            self._resume(resume, allow_changed)
            self.validates = wanted(self.settings) and self._has_validation()
            if self.writes:
                self.state.check_free_space(self.checkpoints, self.train.keep_checkpoints + self.validates)
                record(self.run, self.settings)
            end_after(self.train.hang_minutes)
            self._train()
            enter("after the training", alone=True)

    def _has_validation(self) -> bool:
        if self.task.has_validation():
            return True
        self.log.say("no images are held out (data.files.validation_fraction): the last weights are exported")
        return False

    def _train(self) -> None:
        first = self.step
        module, optimizer = self.engine.prepare(self.optimizer)
        if self.train.compile:
            module = torch.compile(module)
        if self.accelerator.is_main_process and self.accelerator.log_with:
            self.accelerator.init_trackers("ldm")
        meter = Meter(self.accelerator, self.train, self.log.write, self.log.live)
        world, precision = self.accelerator.num_processes, self.accelerator.mixed_precision
        self.log.say(
            f"{self.run}: step {self.step} of {self.train.num_steps}, {f'{world} processes, ' if world > 1 else ''}"
            f"{'fp32' if precision == 'no' else precision}, {self.accelerator.device}{self.engine.text}"
        )
        if remark := small_buckets(self.task.buckets, self.train.batch_size):
            self.log.say(remark)
        if self.step == 0:
            self._report()
        for micro_batches in self._steps():
            if self._stopping():
                return
            self._step(module, optimizer, micro_batches, meter)
            if self.step == first + 1:
                meter.show_first()
            self._after_step(meter)
        self._wait_for_checkpoint()
        self._enter("waiting for the finished model", WAITING, uncut=self.writes)
        if self.writes or self.engine.sharded:
            self._finish(trained=self.step > first)
        if self.accelerator.is_main_process and self.train.planned_minutes:
            if first == 0 and self.step == self.train.num_steps:
                self.log.compare_with_plan(self.step, self.train.planned_minutes)
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:  # `end_training` would take the processes from the next stage too
            tracker.finish()

    def _steps(self) -> Iterator[Iterator[Batch]]:
        """The micro-batches of each remaining step, fewer where validation ends the training; the loader continues
        where the run stopped.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        loader = iter(
            DataLoader(
                self.batches,
                sampler=batch_slices(self.train, self.step, rank, world),
                batch_size=None,
                num_workers=loader_workers(self.train.num_workers, self.accelerator.device),
                pin_memory=self.accelerator.device.type == "cuda",
                worker_init_fn=ignore_interrupts,
            )
        )
        while self.step < self.last_step:
            yield (next(loader) for _ in range(self.train.gradient_accumulation_steps))

    @property
    def last_step(self) -> int:
        """The step to end with: `train.num_steps`, or an earlier one where validation ends the training."""
        return last_step(self.state.validations, self.settings) if self.validates else self.train.num_steps

    def _step(self, module: nn.Module, optimizer, micro_batches: Iterator[Batch], meter: Meter) -> None:
        rate = self.settings.optim.lr * lr_factor(self.settings.optim, self.step, self.last_step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(derive_seed(self.settings.seed, self.step, self.accelerator.process_index))  # dropout
        self.module.train()
        try:
            losses = self._accumulate(module, micro_batches, meter)
            self._enter("the optimizer's step", OPTIMIZING)
            norm = self.engine.clip_grad_norm(self.settings.optim.grad_clip)
            # A process's gradients are in everyone's mean, so all find the same; one number is read from the device.
            finite = math.isfinite(norm)
            if finite or self.accelerator.scaler is not None:  # which skips by itself, and has to hear of it
                optimizer.step()  # the first makes the moments
        except (RuntimeError, MemoryError) as error:
            raise explain_out_of_memory(error, self.train, self.accelerator.num_processes, self.step + 1) from error
        optimizer.zero_grad()
        if finite:
            for loss, metrics in losses:
                meter.add(loss, metrics)
            if self.train.ema_decay:
                self.ema.step(self.model.parameters())
        items = "" if finite else self._first_items(self.step)
        if warning := self.state.count_step(finite, items):
            self.log.say(warning)
        meter.end_step(self.step, norm, rate)

    def _accumulate(self, module: nn.Module, micro_batches: Iterator[Batch], meter: Meter) -> list[LossAndMetrics]:
        """Compute the gradients of one step; the loss and metrics of each of its micro-batches."""
        accumulation, device, losses = self.train.gradient_accumulation_steps, self.accelerator.device, []
        for micro in range(accumulation):
            self._enter("loading data", LOADING + 2 * micro)
            with meter.waiting():
                pinned = device.type == "cuda"
                batch = {key: value.to(device, non_blocking=pinned) for key, value in next(micro_batches).items()}
            self._enter("forward and backward", LOADING + 2 * micro + 1)
            with self.engine.no_sync(module) if micro + 1 < accumulation else nullcontext():
                loss, metrics = module(**batch, progress=self.step / self.train.num_steps)
                self.accelerator.backward(loss / accumulation)
            losses.append((loss, metrics))
        return losses

    def _enter(self, text: str, order: int, alone: bool = False, uncut: bool = False) -> None:
        """Tell the other processes what this one does for its next step."""
        enter(text, self.step + 1, order, alone or uncut, uncut)

    def _first_items(self, step: int) -> str:
        """The first items of a step's global batch, for a message."""
        size = self.train.batch_size
        items = [str(sample.index) for sample in self.batches.samples(BatchSlice(step, 0, size, size))]
        return ", ".join(items[:8] + ["..."] * (size > 8))

    def _after_step(self, meter: Meter) -> None:
        """Log, report and save where this step is due."""
        self.state.writer.check()
        last = self.step == self.last_step
        if self.step % self.train.log_every == 0 or last:
            meter.show()
        if last or (self.train.sample_every and self.step % self.train.sample_every == 0):
            self._report()
            meter.pause()
        if last or self.step % self.train.save_every == 0:
            self._validate()
            self.save()
            meter.pause()

    def _stopping(self) -> bool:
        """Whether any process was asked to stop. Then all of them are, the step is saved, and `held` ends the run."""
        self._enter("agreeing to go on", AGREEING)
        self.held.pending = any_of(self.held.pending)
        if self.held.pending and self.step:
            self.save()
            self._wait_for_checkpoint()  # and for everyone: a launcher ends the others as soon as one is gone
        if self.held.pending:
            self.log.say(f"stopped after step {self.step}; --resume auto continues from there")
        return bool(self.held.pending)

    def save(self) -> None:
        """Write a checkpoint, or begin to; see `TrainingState.save`."""
        self._enter("waiting for a checkpoint", WAITING)
        self.accelerator.wait_for_everyone()
        if self.writes or self.engine.sharded:
            self._enter("writing a checkpoint", WAITING, uncut=True)
            best = best_of(self.state.validations, self.train) if self.validates else None
            spare = checkpoint.name(int(best["step"])) if best else None
            self.state.save(self.checkpoints, self.train.keep_checkpoints, spare)
        self._enter("waiting for a checkpoint", WAITING)
        self.accelerator.wait_for_everyone()

    def _wait_for_checkpoint(self) -> None:
        """Return when a checkpoint that is written meanwhile is there, in all processes."""
        self._enter("waiting for a checkpoint", WAITING, uncut=self.writes or self.engine.sharded)
        self.state.writer.wait()
        self._enter("waiting for a checkpoint", WAITING)
        self.accelerator.wait_for_everyone()

    def _resume(self, wanted: str, allow_changed: Collection[str]) -> None:
        if self.writes:
            lock_run(self.run)
            remove_stale(self.checkpoints)
        self.accelerator.wait_for_everyone()
        found = find(self.run, wanted, whole=not self.engine.sharded)
        origin = self.state.origin
        agree(comparable(origin["settings"]), "give all processes the same settings")
        agree(origin["identity"], "give all processes the same files")
        agree(weights_of(found), f"copy the main process's {self.checkpoints} there, or use a shared --output-dir")
        notes = self.state.restore(*found, allow_changed) if found else []
        self.accelerator.wait_for_everyone()  # all have read
        if self.writes:
            notes += rewind(self.run, self.step if found else -1)  # the log of a start that was never saved goes too
        for note in notes:
            self.log.say(note)
        self.log.say(f"resumed {found[0]}" if found else f"{self.run} holds no checkpoint: a fresh start")

    def _report(self) -> None:
        """Images and validation of the raw and the EMA weights, by the main process, outside the training RNG."""
        main = self.accelerator.is_main_process
        self._enter("reporting" if main else "waiting for a report", WAITING, alone=main)
        self.accelerator.wait_for_everyone()
        numbers: dict[str, float] = {}
        for weights in ["raw", "ema"][: 1 + bool(self.train.ema_decay)]:
            if main or self.engine.sharded:
                with self.engine.whole(self.ema if weights == "ema" else None):
                    numbers |= self._report_of(weights) if main else {}
        if main and not self.held.pending:
            self.log.write({"step": self.step} | numbers)
            self.log.say(f"step {self.step} validation  {shortened(numbers)}")
        self.accelerator.wait_for_everyone()

    def _report_of(self, weights: str) -> dict[str, float]:
        """One report of the weights as they are; a signal ends it, and a full disk does not end the training."""
        numbers: dict[str, float] = {}
        if self.held.pending:
            return numbers
        self.task.module.eval()
        folder = self.run / "samples"
        with self.held.deliver(), self.log.tolerated(OSError, f"cannot write to {folder}"):
            folder.mkdir(exist_ok=True, parents=True)
            numbers = self.task.report(folder, f"{self.step:08d}-{weights}")
        return {f"{weights}/{name}": value for name, value in numbers.items()}

    def _validate(self) -> None:
        """Validate the weights that would be exported now, where that is due: main process, for all processes."""
        if not self.validates or not due(self.step, self.state.validations, self.settings):
            return
        main = self.accelerator.is_main_process
        self._enter("validating" if main else "waiting for a validation", WAITING, uncut=main)
        self.accelerator.wait_for_everyone()
        numbers = torch.full((len(VALUES),), math.nan, dtype=torch.float64)
        if main or self.engine.sharded:
            with self.exported_weights():
                if main:
                    self.task.module.eval()
                    values = self.task.validate()
                    numbers = torch.tensor([values.get(name, math.nan) for name in VALUES], dtype=torch.float64)
        numbers = numbers_of_main(numbers)
        found = {
            name: value
            for name, value in zip(VALUES, numbers.tolist(), strict=True)
            if name == "loss" or value == value
        }
        self.state.validations.append({"step": self.step} | found)
        if self.accelerator.is_main_process:
            self.log.write({"step": self.step} | {f"validation/{name}": value for name, value in found.items()})

    def exported_weights(self) -> AbstractContextManager[None]:
        """Within this context the task's model has the EMA weights, where there are any."""
        return self.engine.whole(self.ema if self.train.ema_decay else None)

    def _finish(self, trained: bool) -> None:
        """Write `final/`, unless it is valid and nothing was trained since."""
        if self.engine.of_main(not trained and checkpoint.finished(self.run)):
            self.log.say(f"already finished: {self.run / 'final'}")
            return
        if self.validates:
            self._take_best()
        with self.exported_weights():
            if self.writes:
                self.task.module.eval()
                with checkpoint.staged(self.run / "final") as folder:
                    self.task.finish(folder)
        self.log.say(f"finished: {self.run / 'final'}")

    def _take_best(self) -> None:
        """Go back to the weights of the best checkpoint, if that is not the last."""
        best = best_of(self.state.validations, self.train)
        if best is not None and best["step"] != self.step:
            found = self.checkpoints / checkpoint.name(int(best["step"]))
            try:
                self.state.take_weights(found)
            except UserError as error:
                return self.log.say(f"the last weights are exported, not those of step {best['step']}: {error}")
        if text := summary(self.state.validations, self.settings):
            self.log.say(text)
