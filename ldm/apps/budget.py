"""The plan of `ldm plan` and `ldm train`: widths, batches and steps of all stages for given minutes and memory.

Text encoder and autoencoder take a share of the time, or less where they need less; the U-Net has the rest. Of each
stage the widest network is chosen that still sees `TARGET` images in its time: on emoji a U-Net of 64/128/160 with
307,000 images is better than one of 96/192/256 with 160,000 (docs/emoji.md), and one of 48/96/128 with 20,000 better
than one of 16/32/48 with 35,000. From the time of a stage, what reports, images and the latent cache take is
subtracted first.
"""

import functools
import math
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from ldm.apps.stages import MIN_BATCH, SHARES, stages
from ldm.config.loading import load
from ldm.config.settings import ClipSettings, DataOptions, LdmSettings, RunSettings, TrainOptions, VaeSettings
from ldm.evaluation.training_hook import COPIES, COPY_STEPS
from ldm.training import validation
from ldm.training.cost_estimate import Forecast, forecast, size_text, training_samples
from ldm.training.devices import training_device
from ldm.utils.errors import UserError
from ldm.utils.runtime import launched_processes

MOST = 0.35  # of the time that text encoder or autoencoder may take where their share is too little
TARGET = {"clip": 30_000, "vae": 20_000, "ldm": 20_000}  # images that a network should see, else it is narrowed
REFERENCE = 5.3e6  # parameters of the U-Net that TARGET is for; with r times as many it is max(0.5, r, r^2) times that
LEAST = {"clip": 5_000, "vae": 4_000, "ldm": 4_000}  # images below which nothing is learned
EPOCHS = {"clip": 40, "vae": 30}  # after which these stages have enough, if they have seen
ENOUGH = {"clip": 60_000, "vae": 100_000}  # so many images
MIN_STEPS = {"clip": 300, "vae": 600, "ldm": 600}  # a batch is halved until there are so many
NARROWED = (0.25, 0.375, 0.5, 0.75, 1.0)  # widths of text encoder and autoencoder, of those in the config
WIDTHS = (*NARROWED, 1.5, 2.0, 3.0, 4.0)  # of the U-Net
EMA_WINDOWS = 10  # of the EMA in a training, at least
STARTING = 10.0  # seconds until the libraries are loaded and the data are open
SAVING = 180.0  # seconds between checkpoints, or a fifth of the steps where that is less
LINES = 15.0  # seconds between lines of progress, where the config leaves it open
SLACK = 0.95  # of the time: others use the machine too
SAMPLING_BYTES = 256 * 2**20  # that data and sampling take beside training on a CPU
CUDA_CONTEXT = 600 * 2**20  # bytes of a GPU's memory that no tensor holds

Changes = dict[str, Any]


@dataclass(frozen=True)
class Proposal:
    """What to change in the settings of one stage, and what it will cost."""

    part: str
    changes: Changes  # nested as in a project file
    settings: RunSettings  # with the changes
    forecast: Forecast
    seconds: float  # all of it
    memory: float  # bytes, the program's own included

    @property
    def steps(self) -> int:
        return self.settings.train.num_steps

    @property
    def images(self) -> int:
        """How many images it sees."""
        return self.steps * self.settings.train.batch_size

    @property
    def target(self) -> float:
        """How many it should see at this width."""
        if self.part != "ldm":
            return TARGET[self.part]
        ratio = self.forecast.cost.exported / REFERENCE
        return TARGET["ldm"] * max(0.5, ratio, ratio**2)


def propose(
    config: Path,
    minutes: float,
    memory: float | None = None,
    keep: Collection[str] = (),
    reserve: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
) -> list[Proposal]:
    """What to train in each stage, in all of these minutes.

    Args:
        config: the project file that is started from.
        memory: bytes that a stage may take; None = what the device has.
        keep: settings that stay as they are: "vae.model.block_out_channels", or "train.batch_size" of all stages.
        reserve: seconds to leave for what is no training.
        say: takes a line after each measurement.
    Raises: UserError: if one image does not fit, or a stage would see too few images to learn anything.
    """
    memory = device_memory() if memory is None else memory
    seconds = SLACK * 60 * minutes - reserve
    proposals: list[Proposal] = []
    short: list[tuple[float, TooShort]] = []  # with the seconds that all stages need for its sake
    for part in stages(load("ldm", config)):
        used = sum(one.seconds for one in proposals)
        vae = next((one.forecast for one in proposals if one.part == "vae"), None)
        planner = Planner(part, config, memory, kept_of(part, keep), vae, say)
        share, left = SHARES.get(part, 1.0), seconds - used
        try:
            proposals.append(planner.best(min(share * seconds, left), min(max(MOST, share) * seconds, left)))
        except TooShort as found:
            others = sum(SHARES[one.part] for one in proposals)  # which grow with the minutes
            needed = max(used + found.seconds, found.seconds / (1 - others)) if part == "ldm" else found.seconds / MOST
            short.append((needed, found))
            proposals.append(replace(found.one, seconds=found.seconds))  # later stages may need even more
    if short:
        needed, worst = max(short, key=lambda each: each[0])
        raise UserError(worst.text(math.ceil(1.05 * (needed + reserve) / SLACK / 60 + 1)))
    return proposals


def kept_of(part: str, keep: Collection[str]) -> set[str]:
    """Those settings of `keep` that are of this stage, without its name: {"model.width"}."""
    own = {name.removeprefix(f"{part}.") for name in keep if name.startswith(f"{part}.")}
    return own | {name for name in keep if name.partition(".")[0] in ("train", "optim")}


class TooShort(Exception):
    """Even the narrowest network of a stage would see too few images; `seconds`: what it needs."""

    def __init__(self, one: Proposal, seconds: float):
        self.one, self.seconds = one, seconds

    def text(self, minutes: int) -> str:
        """One line: what is too little, and what to change."""
        data, wide = self.one.settings.data, shape_text(self.one.settings)
        return (
            f"{self.one.part}: too little time: {max(0, self.one.images):,} images at {data.resolution} pixels, even "
            f"with {wide}, where fewer than {LEAST[self.one.part]:,} teach nothing: "
            f"give --minutes {minutes} or more, or lower data.resolution"
        )


class Planner:
    """Finds the settings of one stage; each shape is counted and measured once."""

    def __init__(
        self,
        part: str,
        config: Path,
        memory: float,
        keep: Collection[str],
        vae: Forecast | None,
        say: Callable[[str], None],
    ):
        self.part, self.config, self.memory, self.keep, self.vae, self.say = part, config, memory, keep, vae, say
        self.original = load(part, config)
        self.found: dict[int, tuple[RunSettings, Forecast] | None] = {}  # by candidate

    def best(self, seconds: float, most: float) -> Proposal:
        """The widest that sees enough images in `seconds`, else the narrowest, for which it may be `most`.

        The width of the config is measured first. Time grows with the number of weights and, of a U-Net, the images
        wanted with its square, which says where to measure next.

        Raises: UserError: not one image fits; TooShort.
        """
        candidates = [*self.candidates()]
        low, high, guess = -1, len(candidates), self.nearest(candidates, width_of(self.original))
        while high - low > 1:
            one = self.fitted(guess, candidates[guess], seconds)
            enough = one is not None and one.images >= min(one.target, self.enough())
            low, high = (guess, high) if enough else (low, guess)
            ratio = one.images / one.target if one else 0.5
            power = 6 if self.part == "ldm" else 2
            wanted = width_of(changed(self.original, candidates[guess])) * ratio ** (1 / power)
            guess = min(high - 1, max(low + 1, self.nearest(candidates, wanted)))
        one = self.fitted(max(0, low), candidates[max(0, low)], seconds)
        if one is None:
            raise UserError(f"{self.part}: one image does not fit into {size_text(self.memory)}: give more --memory")
        if "train.num_steps" in self.keep or one.images >= self.least():
            return one
        more = self.fitted(0, candidates[0], most, self.least())
        assert more is not None
        if more.images < self.least():
            raise TooShort(more, self.needed(more))
        return more

    def least(self) -> float:
        return min(LEAST[self.part], self.enough())

    def enough(self) -> float:
        """Images after which this stage gains little."""
        if self.part not in ENOUGH:
            return math.inf
        return max(ENOUGH[self.part], EPOCHS[self.part] * count_samples(self.original.data.model_dump_json()))

    def needed(self, one: Proposal) -> float:
        """Seconds for the least images with these settings."""
        batch = one.settings.train.batch_size
        steps = math.ceil(self.least() / batch) - one.steps
        return one.seconds + steps * one.forecast.step_seconds(batch)

    def nearest(self, candidates: list[Changes], width: float) -> int:
        """The widest candidate of at most this width."""
        widths = [width_of(changed(self.original, one)) for one in candidates]
        return max((i for i, each in enumerate(widths) if each <= width), default=0)

    def candidates(self) -> Iterator[Changes]:
        """Changes of the model, the narrowest first; only those that its settings allow."""
        kept = {name.split(".")[1] for name in self.keep if name.startswith("model.")}
        seen = set()
        for factor in WIDTHS if self.part == "ldm" else NARROWED:
            model = {name: value for name, value in scaled(self.original, factor).items() if name not in kept}
            changes = {"model": model} if model else {}
            try:
                width = width_of(changed(self.original, changes))
            except ValidationError:
                continue
            if width not in seen:
                seen.add(width)
                yield changes

    def measured(self, index: int, changes: Changes) -> tuple[RunSettings, Forecast] | None:
        """Settings with as many images at once as fit, and their forecast; None if not one image fits."""
        if index in self.found:
            return self.found[index]
        settings, own = changed(self.original, changes), program_memory()
        sized = forecast(self.part, settings, self.config, timed=False)
        while sized.memory + own > self.memory:
            if sized.local == 1 or settings.train.batch_size == 1:
                self.found[index] = None
                return None
            settings = halved(self.part, settings)
            sized = replace(sized, local=max(1, sized.local // 2))
        found = forecast(self.part, settings, self.config, cost=sized.cost)
        speed = speed_text(found, settings.train.batch_size)
        self.say(
            f"measured {self.part} {shape_text(settings)}: {sized.cost.exported / 1e6:.2f} M parameters, "
            f"{speed}{found.speed.remark}"
        )
        self.found[index] = settings, found
        return self.found[index]

    def fitted(self, index: int, changes: Changes, seconds: float, most_images: float = math.inf) -> Proposal | None:
        """With as many steps as fit into `seconds`, and a smaller batch where that makes too few of them."""
        measured = self.measured(index, changes)
        if measured is None:
            return None
        settings, found = measured
        overhead = overhead_seconds(self.part, settings, found, self.vae)
        most = min(most_images, self.enough())
        batch = settings.train.batch_size
        while True:
            step = found.step_seconds(batch)
            steps = max(1, min(math.floor((seconds - overhead) / step), math.ceil(min(most, 1e12) / batch)))
            if "train.num_steps" in self.keep:
                steps = self.original.train.num_steps
            few = steps < MIN_STEPS[self.part] and batch >= 2 * MIN_BATCH[self.part]
            if not few or {"train.num_steps", "train.batch_size"} & set(self.keep):
                break
            batch //= 2
        total = overhead + steps * step
        all_changes = self.kept_out(changes | self.training(settings, batch, steps, step, total))
        return Proposal(
            self.part, all_changes, changed(self.original, all_changes), found, total, found.memory + program_memory()
        )

    def training(self, settings: RunSettings, batch: int, steps: int, step: float, total: float) -> Changes:
        """The changes of `train` and `optim`."""
        own, rate = self.original.train, self.original.optim.lr
        every = max(1, min(math.ceil(steps / 5), round(SAVING / step)))
        train: Changes = {"num_steps": steps, "batch_size": batch, "save_every": every}
        if own.log_every == TrainOptions().log_every:
            train["log_every"] = max(1, round(LINES / step))
        if own.sample_every:  # 0 = the user wants none on the way
            train["sample_every"] = math.ceil(steps / 2)
        at_once = settings.train.batch_size // settings.train.gradient_accumulation_steps
        if (accumulated := max(1, batch // at_once)) != own.gradient_accumulation_steps:
            train["gradient_accumulation_steps"] = accumulated
        if own.ema_decay > (longest := 1 - EMA_WINDOWS / max(steps, 2 * EMA_WINDOWS)):
            train["ema_decay"] = round(longest, 4)
        train["planned_minutes"] = round(total / 60, 2)
        optim: Changes = {"warmup_steps": min(self.original.optim.warmup_steps, steps // 10)}
        if batch != own.batch_size:  # Adam's square root rule: Malladi et al. 2022, arXiv 2205.10287
            optim["lr"] = float(f"{rate * math.sqrt(batch / own.batch_size):.2g}")
        return {"train": train, "optim": optim}

    def kept_out(self, changes: Changes) -> Changes:
        """The changes without those that the user keeps from being made."""
        left = {
            section: {name: value for name, value in inner.items() if f"{section}.{name}" not in self.keep}
            for section, inner in changes.items()
        }
        return {section: inner for section, inner in left.items() if inner}


def scaled(settings: RunSettings, factor: float) -> Changes:
    """The widths of the model times `factor`, as multiples of what its heads and norms need; {} where it has none."""
    if isinstance(settings, ClipSettings):
        model = settings.model
        units = {"width": 8 * model.heads, "vision_width": 8 * model.vision_heads, "embed_dim": 8}
        return {name: rounded(factor * getattr(model, name), unit) for name, unit in units.items()}
    if isinstance(settings, LdmSettings) and settings.denoiser != "unet":
        return {}
    if not isinstance(settings, LdmSettings | VaeSettings) or (
        isinstance(settings, VaeSettings) and settings.start.model
    ):
        return {}
    unit = settings.model.norm_num_groups
    if isinstance(settings, LdmSettings):
        unit = math.lcm(unit, settings.model.heads)
    return {"block_out_channels": [rounded(factor * width, unit) for width in settings.model.block_out_channels]}


def rounded(value: float, unit: int) -> int:
    return max(unit, round(value / unit) * unit)


def width_of(settings: RunSettings) -> float:
    """The mean width of the network, for comparison with others of its kind."""
    if isinstance(settings, ClipSettings):
        return (settings.model.width + settings.model.vision_width) / 2
    if isinstance(settings, LdmSettings | VaeSettings):
        return sum(settings.model.block_out_channels) / len(settings.model.block_out_channels)
    return 1.0


def shape_text(settings: RunSettings) -> str:
    """The widths of a network: '48/96/128'."""
    if isinstance(settings, ClipSettings):
        return f"{settings.model.width} + {settings.model.vision_width}"
    if isinstance(settings, LdmSettings) and settings.denoiser != "unet":
        return str(settings.mlp.width)
    assert isinstance(settings, LdmSettings | VaeSettings)
    if isinstance(settings, VaeSettings) and settings.start.model:
        return f"of {settings.start.model}"
    return "/".join(map(str, settings.model.block_out_channels))


def speed_text(found: Forecast, batch: int) -> str:
    """'45.2 images/s', '1,210 images/s'."""
    speed = batch / found.step_seconds(batch)
    return f"{speed:,.0f} images/s" if speed >= 100 else f"{speed:.3g} images/s"


def changed(settings: RunSettings, changes: Changes) -> RunSettings:
    """Checked settings with nested changes. Raises: ValidationError."""
    values = settings.model_dump()
    for section, inner in changes.items():
        values[section] = values[section] | inner
    return type(settings)(**values)


def halved(part: str, settings: RunSettings) -> RunSettings:
    """Half as many images at once: more accumulation steps; for CLIP a smaller batch, whose items it contrasts."""
    train = settings.train
    if part == "clip":
        return changed(settings, {"train": {"batch_size": train.batch_size // 2}})
    per_process = train.batch_size // launched_processes()
    more = (n for n in range(2 * train.gradient_accumulation_steps, per_process) if per_process % n == 0)
    return changed(settings, {"train": {"gradient_accumulation_steps": next(more, per_process)}})


# ---- what is not training ------------------------------------------------------------------------------------------


def overhead_seconds(part: str, settings: RunSettings, found: Forecast, vae: Forecast | None) -> float:
    """Seconds for starting, reports, images and the latent cache, from what a training image takes.

    A forward pass is a third of a training step, and half of one in half precision: reports are computed in fp32.
    """
    fraction = 1 / 2 if found.half else 1 / 3
    forward = fraction / found.speed.images
    samples = count_samples(settings.data.model_dump_json())
    held_out = 16 + 0.06 * samples  # about; reports use some of them
    validations = validation.MOST if validation.wanted(settings) else 0
    weights = 2 if settings.train.ema_decay else 1
    reports = weights * (3 if settings.train.sample_every else 2)  # before, half-way and after
    if part == "clip":
        return STARTING + (reports + validations) * min(512, held_out) * forward
    if part == "vae":
        statistics = min(4096, samples) / 2  # of the latents, at the end
        return STARTING + ((reports + validations) * min(128, held_out) + statistics) * forward
    assert isinstance(settings, LdmSettings)
    chosen = settings.sampling
    scored = chosen.judged if settings.data.source in ("glyphs", "digits") else 0
    images = (len(chosen.prompts) or 8) * chosen.per_prompt + scored
    decode = fraction / vae.speed.images / 2 if vae else forward
    drawn = images * (sampling_calls(settings) * forward + decode) + 2 * min(512, held_out) * forward
    compared = COPIES * (COPY_STEPS * 2 * forward + decode) if settings.train.max_copies < 1 else 0.0
    validated = min(512, held_out) * forward + compared
    encoded = 0 if settings.vae == "identity" else samples + held_out
    return STARTING + reports * drawn + validations * validated + encoded * decode


@functools.cache
def count_samples(options: str) -> int:
    """`training_samples` of a JSON of data options: a folder is looked at once."""
    return training_samples(DataOptions.model_validate_json(options))


def sampling_calls(settings: LdmSettings) -> int:
    """Network calls for one image, guidance included."""
    chosen = settings.sampling
    return chosen.num_inference_steps * (1 if chosen.guidance_scale == 1 else 2)


def device_memory() -> float:
    """Bytes of the GPU, or its part of what the system has free, of several processes."""
    if training_device().type == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    import psutil

    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def program_memory() -> float:
    """Bytes that a trainer takes before it has a model."""
    if training_device().type == "cuda":
        return CUDA_CONTEXT
    import psutil

    return psutil.Process().memory_info().rss + SAMPLING_BYTES
