"""The estimate of `ldm plan`: the widest U-Net, the batches and the steps that given minutes and memory allow.

Minutes are divided among the stages as they were when the shipped model was made. From the time of a stage, what
reports, images and the latent cache take is subtracted first, and the rest is divided by the measured time of a step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.config.loading import load
from ldm.config.settings import LdmSettings, RunSettings
from ldm.training.cost_estimate import Forecast, forecast, size_text, training_device, training_samples
from ldm.utils.errors import UserError

SHARES = {"clip": 0.25, "vae": 0.25, "ldm": 0.5}  # of the time
MIN_STEPS = 1000  # of a U-Net: a narrower one with more steps makes better images than a wider one with fewer
MIN_BATCH = 16
WIDTHS = (0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # of the U-Net in the config
REPORTS = 3  # before, half-way and after; each is of the raw and of the EMA weights
STARTING = 10.0  # seconds until the libraries are loaded and the data are open
SLACK = 0.95  # of the time: others use the machine too
SAMPLING_BYTES = 256 * 2**20  # that data and sampling take beside training on a CPU
CUDA_CONTEXT = 600 * 2**20  # bytes of a GPU's memory that no tensor holds


@dataclass(frozen=True)
class Proposal:
    """What to change in the settings of one stage, and what it will cost."""

    part: str
    changes: dict[str, Any]  # nested as in a project file
    settings: RunSettings  # with the changes
    forecast: Forecast
    seconds: float  # all of it
    memory: float  # bytes, the program's own included

    @property
    def steps(self) -> int:
        return self.settings.train.num_steps


def propose(config: Path, minutes: float, memory: float | None = None) -> list[Proposal]:
    """What to train in each stage, in all of these minutes.

    Args:
        config: the project file that is started from.
        memory: bytes that a stage may take; None = what the device has.
    Raises: UserError: if one image does not fit, or nothing can be learned in so little time.
    """
    memory = device_memory() if memory is None else memory
    settings = load("ldm", config)
    wanted = {"clip": settings.text.source == "run", "vae": settings.vae == "run", "ldm": True}
    finished = settings.distill.teacher or settings.start.model
    parts = ["ldm"] if finished else [part for part, needed in wanted.items() if needed]
    total = sum(SHARES[part] for part in parts)
    proposals: list[Proposal] = []
    for part in parts:
        seconds = 60 * minutes * SHARES[part] / total
        vae = next((one.forecast for one in proposals if one.part == "vae"), None)
        proposals.append(_part(part, config, seconds, memory, vae))
    return proposals


def _part(part: str, config: Path, seconds: float, memory: float, vae: Forecast | None) -> Proposal:
    """The first settings that give the U-Net enough steps at the greatest width, or a smaller batch at the least."""
    best: Proposal | None = None
    for changes in _candidates(part, config):
        one = _fitted(part, config, changes, seconds, memory, vae)
        if one is None or (best and one.steps < MIN_STEPS):
            break
        best = one
    if best is None:
        raise UserError(f"{part}: one image does not fit into {size_text(memory)}: give more --memory")
    while part != "clip" and best.steps < MIN_STEPS and best.settings.train.batch_size >= 2 * MIN_BATCH:
        changes = best.changes | {"train": {"batch_size": best.settings.train.batch_size // 2}}
        best = _fitted(part, config, changes, seconds, memory, vae) or best
    if best.seconds > seconds:
        needed = best.seconds / seconds
        raise UserError(
            f"{part} has {seconds:.0f} s, and starting, reports and caches alone take {best.seconds:.0f}: "
            f"give {needed:.1f} times as many --minutes"
        )
    return best


def _candidates(part: str, config: Path) -> Iterator[dict[str, Any]]:
    """Nothing to change, but for a U-Net: each width, the narrowest first."""
    settings = load(part, config)
    if not isinstance(settings, LdmSettings) or settings.denoiser != "unet":
        yield {}
        return
    own = settings.model.block_out_channels
    unit = math.lcm(settings.model.norm_num_groups, settings.model.heads)
    widths = [[max(unit, round(factor * width / unit) * unit) for width in own] for factor in WIDTHS]
    for i, chosen in enumerate(widths):
        if chosen not in widths[:i]:
            yield {"model": {"block_out_channels": chosen}}


def _fitted(
    part: str, config: Path, changes: dict[str, Any], seconds: float, memory: float, vae: Forecast | None
) -> Proposal | None:
    """With as many images at once as fit, and as many steps; None if not one image fits."""
    original = load(part, config)
    settings, own = _changed(original, changes), program_memory()
    sized = forecast(part, settings, config, timed=False)
    while sized.memory + own > memory:
        if sized.local == 1 or settings.train.batch_size == 1:
            return None
        settings = _halved(part, settings)
        sized = forecast(part, settings, config, timed=False)
    found = forecast(part, settings, config)
    overhead = overhead_seconds(part, settings, found, vae)
    batch, step = settings.train.batch_size, found.step_seconds(settings.train.batch_size)
    steps = max(1, math.floor((SLACK * seconds - overhead) / step))
    total = overhead + steps * step
    train: dict[str, Any] = {"num_steps": steps, "batch_size": batch}
    if (parts := settings.train.gradient_accumulation_steps) != original.train.gradient_accumulation_steps:
        train["gradient_accumulation_steps"] = parts
    train |= {"sample_every": math.ceil(steps / (REPORTS - 1)), "save_every": math.ceil(steps / 5)}
    train["planned_minutes"] = round(total / 60, 2)
    optim: dict[str, Any] = {"warmup_steps": min(original.optim.warmup_steps, steps // 10)}
    if batch != original.train.batch_size:  # Adam's square root rule: Malladi et al. 2022, arXiv 2205.10287
        optim["lr"] = float(f"{original.optim.lr * math.sqrt(batch / original.train.batch_size):.2g}")
    changes = changes | {"train": train, "optim": optim}
    return Proposal(part, changes, _changed(original, changes), found, total, found.memory + own)


def _changed(settings: RunSettings, changes: dict[str, Any]) -> RunSettings:
    """Checked settings with nested changes."""
    values = settings.model_dump()
    for section, inner in changes.items():
        values[section] = values[section] | inner
    return type(settings)(**values)


def _halved(part: str, settings: RunSettings) -> RunSettings:
    """Half as many images at once: more accumulation steps; for CLIP a smaller batch, whose items it contrasts."""
    train = settings.train
    if part == "clip":
        return _changed(settings, {"train": {"batch_size": train.batch_size // 2}})
    return _changed(settings, {"train": {"gradient_accumulation_steps": 2 * train.gradient_accumulation_steps}})


# ---- what is not training ------------------------------------------------------------------------------------------


def overhead_seconds(part: str, settings: RunSettings, found: Forecast, vae: Forecast | None) -> float:
    """Seconds for starting, reports, images and the latent cache, from what a training image takes.

    A forward pass is a third of a training step, and half of one in half precision: reports are computed in fp32.
    """
    fraction = 1 / 2 if found.half else 1 / 3
    forward = fraction / found.speed.images
    samples = training_samples(settings.data)
    held_out = 16 + 0.06 * samples  # about; reports use some of them
    weights = 2 if settings.train.ema_decay else 1
    if part == "clip":
        return STARTING + REPORTS * weights * min(512, held_out) * forward
    if part == "vae":
        statistics = min(4096, samples) / 2  # of the latents, at the end
        return STARTING + (REPORTS * weights * min(128, held_out) + statistics) * forward
    assert isinstance(settings, LdmSettings)
    chosen = settings.sampling
    scored = chosen.judged if settings.data.source in ("glyphs", "digits") else 0
    images = (len(chosen.prompts) or 8) * chosen.per_prompt + scored
    calls = chosen.num_inference_steps * (1 if chosen.guidance_scale == 1 else 2)
    decode = fraction / vae.speed.images / 2 if vae else forward
    reports = REPORTS * weights * (images * (calls * forward + decode) + 2 * min(512, held_out) * forward)
    encoded = 0 if settings.vae == "identity" else samples + held_out
    return STARTING + reports + encoded * decode


def device_memory() -> float:
    """Bytes of the GPU, or what the system has free."""
    if training_device().type == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    import psutil

    return psutil.virtual_memory().available


def program_memory() -> float:
    """Bytes that a trainer takes before it has a model."""
    if training_device().type == "cuda":
        return CUDA_CONTEXT
    import psutil

    return psutil.Process().memory_info().rss + SAMPLING_BYTES
