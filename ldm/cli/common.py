"""What several commands share: options, checks before the work, and the progress of denoising."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.utils.errors import UserError
from ldm.utils.terminal import LiveLine, bar, duration_text

MAX_SCALE = 64
OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"help": "exported folder, LDM run or Hub id (default: the model that comes with ldm)"},
    "lora": {"metavar": "PATH[:SCALE]", "help": "LoRA adapters: a file, or the run that made it, and how strongly"},
    "negative": {"metavar": "TEXT", "help": "negative prompt: what the images should not show"},
    "guidance": {"type": float, "metavar": "SCALE", "help": "guidance scale of the prompt, 1 = off (default: model's)"},
    "steps": {"type": int, "metavar": "N", "help": "number of inference (denoising) steps (default: the model's)"},
    "sampler": {"metavar": "NAME", "help": "sampler, such as dpmpp_2m, unipc, ddim or euler (default: the model's)"},
    "height": {"type": int, "metavar": "PIXELS", "help": "height of each image (default: the model's)"},
    "width": {"type": int, "metavar": "PIXELS", "help": "width of each image (default: the model's)"},
    "seed": {"type": int, "metavar": "N", "help": "random seed; image i is generated from seed + i (default: 0)"},
    "number": {"type": int, "metavar": "N", "help": "number of images, side by side"},
    "scale": {"type": int, "metavar": "N", "help": "repeat every pixel N x N times for viewing (default: 1)"},
    "device": {"help": "cpu, cuda, ... (default: the fastest there is)"},
}
SHORT = {"model": "-m", "number": "-n", "output": "-o"}


def add_options(parser: Any, *names: str, **changes: Any) -> None:
    """Add options of `OPTIONS` to a parser; `changes` go to all of them."""
    for name in names:
        flags = [SHORT[name]] if name in SHORT else []
        parser.add_argument(*flags, f"--{name}", **OPTIONS[name] | changes)


def check_number(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises: UserError if the value of the option --name is given and is no whole number in the range."""
    if value is None or (isinstance(value, int) and least <= value and (most is None or value <= most)):
        return
    allowed = f", {least} or more" if most is None else f" from {least} to {most}"
    raise UserError(f"--{name.replace('_', '-')} must be a whole number{allowed}, got {value!r}")


def check_guidance(value: float | None) -> None:
    """Raises: UserError unless the guidance scale is None or finite and 0 or more."""
    if value is not None and not 0 <= value < float("inf"):
        raise UserError(f"--guidance must be 0 or more (1 = off), got {value}")


def check_writable(path: Path, endings: tuple[str, ...] = (".png",), option: str = "--output") -> None:
    """Fail before the work, not after it."""
    if path.suffix.lower() not in endings:
        raise UserError(f"{option} must end in {' or '.join(endings)}, got {str(path)!r}")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file in it")
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"{option} {path} cannot be written: {place} is not a writable folder")


def progress(steps: int, live: LiveLine) -> Callable[..., None] | None:
    """A callback that shows the step and the time left on a terminal; None where there is none."""
    if not live.visible:
        return None
    start, began = time.perf_counter(), -1
    live.show(bar(0, steps), now=True)

    def show(step: int, timestep: Any, latents: Any) -> None:
        nonlocal start, began
        if step <= began or began < 0:  # the first of a batch, or of another image: its time tells of loading too
            start, began = time.perf_counter(), step
            return live.show(bar(step + 1, steps), now=True)
        left = (time.perf_counter() - start) / (step - began) * (steps - step - 1)
        live.show(f"{bar(step + 1, steps)}  {duration_text(left)} left", now=step + 1 == steps)

    return show


def counted(count: int, noun: str = "image") -> str:
    """'1 image', '2 images'."""
    return f"{count} {noun}{'s' * (count != 1)}"
