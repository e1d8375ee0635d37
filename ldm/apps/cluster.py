"""What a training takes on GPUs that are not at hand: memory, time, data and cost, by the formulas of docs/scaling.md.

Parameters, FLOPs and activations are counted (`ldm.training.cost_estimate`); the GPU is four numbers that its maker
publishes, and an assumed efficiency. Nothing is measured.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.apps.gpus import EFFICIENCY, GPUS, LAUNCH, Gpu
from ldm.apps.stages import stages
from ldm.config.loading import load
from ldm.config.settings import LdmSettings, RunSettings
from ldm.training.cost_estimate import (
    BACKWARD_FACTOR,
    HALF_FACTOR,
    CostCount,
    latent_channels,
    measure_cost,
    probe_target,
    size_text,
)
from ldm.utils.errors import UserError
from ldm.utils.terminal import duration_text


@dataclass(frozen=True)
class Estimate:
    """One stage on `gpus` GPUs of a type.

    Attributes:
        cost: of one image.
        batch: images of a step, in all of them; `local`: those that one holds at once.
        efficiency: fraction of the peak FLOP/s that is reached.
        sharded: FSDP2 rather than DDP.
    """

    cost: CostCount
    gpu: Gpu
    gpus: int
    batch: int
    local: int
    efficiency: float = EFFICIENCY
    sharded: bool = False
    ema: bool = True
    half: bool = True

    @property
    def state(self) -> float:
        """Bytes of weights, gradients, Adam's moments and EMA in one GPU."""
        every = 16 * self.cost.trained + (4 * self.cost.exported if self.ema else 0)
        return every / self.gpus if self.sharded else every

    @property
    def activations(self) -> float:
        """Bytes of activations in one GPU, and of their gradients on the way back."""
        return self.cost.activations * self.local * BACKWARD_FACTOR * (HALF_FACTOR if self.half else 1)

    @property
    def memory(self) -> float:
        """Bytes in one GPU, beside what the program takes by itself."""
        return self.state + self.activations

    @property
    def compute(self) -> float:
        """Seconds of the passes of a step, forward and backward: of arithmetic, or of launching it if that is more."""
        arithmetic = self.cost.flops * self.batch / (self.gpus * self.gpu.flops * self.efficiency)
        passes = self.batch // (self.gpus * self.local)
        return max(arithmetic, passes * self.cost.operations * LAUNCH)

    @property
    def exchange(self) -> float:
        """Seconds in which gradients, and with FSDP2 weights, travel in a ring."""
        rounds = 3 if self.sharded else 2
        return rounds * (self.gpus - 1) / self.gpus * 4 * self.cost.trained / self.gpu.link

    @property
    def update(self) -> float:
        """Seconds of the optimizer and the EMA, which read and write memory."""
        moved = 28 * self.cost.trained + (12 * self.cost.exported if self.ema else 0)
        return moved / self.gpu.bandwidth / (self.gpus if self.sharded else 1)

    @property
    def step(self) -> float:
        """Seconds of a step; the exchange is hidden behind the computation as far as that lasts."""
        return max(self.compute, self.exchange) + self.update


def estimate(part: str, settings: RunSettings, config: Path, gpu: Gpu, gpus: int, efficiency: float) -> Estimate:
    """One stage under DDP. Raises: UserError if its batch cannot be divided."""
    train = settings.train
    at_once = gpus * train.gradient_accumulation_steps
    if train.batch_size % at_once:
        raise UserError(f"{part}.train.batch_size {train.batch_size} is no multiple of {at_once}: give another --gpus")
    cost = measure_cost(probe_target(part, settings, config))
    local = train.batch_size // at_once
    return Estimate(cost, gpu, gpus, train.batch_size, local, efficiency, ema=bool(train.ema_decay))


def report(
    config: Path,
    name: str,
    gpus: int,
    images: int,
    epochs: float = 1.0,
    efficiency: float = EFFICIENCY,
    price: float | None = None,
) -> str:
    """The plan of all stages of a project file, several lines.

    Args:
        name: of `GPUS`.
        images: of the data set, each of which the U-Net sees `epochs` times; the other stages take their own steps.
        price: of a GPU for an hour.
    """
    gpu, ldm = GPUS[name], load("ldm", config)
    lines: list[str] = []
    seconds = 0.0
    for part in stages(ldm):
        settings = load(part, config)
        one = estimate(part, settings, config, gpu, gpus, efficiency)
        steps = math.ceil(images * epochs / one.batch) if part == "ldm" else settings.train.num_steps
        seconds += steps * one.step
        lines += stage_lines(part, one, steps, image_bytes(part, ldm, config))
    hours = gpus * seconds / 3600
    paid = "--price gives the cost" if price is None else f"{price * hours:,.0f} at {price:g} an hour"
    head = (
        f"{gpus} x {name}: {gpu.flops / 1e12:.0f} TFLOP/s in bf16, of which {efficiency:.0%} are assumed; not measured"
    )
    return "\n".join(
        [
            head,
            *lines,
            f"{'cache':<6}{caches(ldm, config, images)}",
            f"{'all':<6}{seconds / 86400:.3g} days, {hours:,.3g} GPU hours, {paid}; without encoding and validation",
        ]
    )


def stage_lines(part: str, one: Estimate, steps: int, each: int) -> Iterator[str]:
    """What one stage takes; `each`: bytes that are read of an image."""
    rate = one.batch / one.step
    yield (
        f"{part:<6}{one.cost.exported / 1e6:.1f} M parameters; {steps:,} steps of {one.batch}, {one.local} at once in "
        f"a GPU; {duration_text(steps * one.step)}"
    )
    step, *parts = (f"{1000 * seconds:.3g}" for seconds in (one.step, one.compute, one.exchange, one.update))
    yield f"      a step: {step} ms (compute {parts[0]}, exchange {parts[1]}, update {parts[2]})"
    ways = {"DDP": one}
    if part == "ldm" and one.gpus > 1:  # only denoisers are sharded
        ways["FSDP2"] = replace(one, sharded=True)
    fits = {way: "" if it.memory < it.gpu.memory else " (does not fit)" for way, it in ways.items()}
    memory = ", ".join(f"{way} {size_text(it.memory)}{fits[way]}" for way, it in ways.items())
    yield f"      memory of a GPU: {memory}; data: {rate:,.0f} images/s, {rate * each / 1e6:,.0f} MB/s"


def image_bytes(part: str, ldm: LdmSettings, config: Path) -> int:
    """Bytes that a stage reads of an image: pixels as uint8, or mean and deviation of its latents as float16."""
    height, width = ldm.data.size
    if part != "ldm" or not ldm.cache_latents or ldm.vae == "identity":
        return ldm.data.channels * height * width
    channels, factor = latent_channels(ldm, config)
    return 4 * channels * (height // factor) * (width // factor)


def caches(ldm: LdmSettings, config: Path, images: int) -> str:
    pixels, read = (images * image_bytes(part, ldm, config) for part in ("vae", "ldm"))
    latents = f"latents {size_text(read)}; " if ldm.cache_latents and ldm.vae != "identity" else ""
    return f"{latents}pixels {size_text(pixels)}, none for streamed shards"
