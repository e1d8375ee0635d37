"""What `accelerate launch`, its config file and its environment variables ask for, beside the settings of a run.

`auto` follows; a setting that somebody chose counts, and a line says so.
"""

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ldm.config.settings import RunSettings
from ldm.training.optimizer import native_bf16
from ldm.utils.errors import UserError

PRECISIONS = ("no", "bf16", "fp16")


def launcher_words() -> list[str]:
    """The command line of the `accelerate launch` that started this process; empty without one."""
    import psutil

    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    names = [Path(word).name for word in words[:4]]  # accelerate launch, accelerate-launch, python -m ...
    started = " ".join(name for name in names if " " not in name)  # a shell's script is one word
    return words if re.search(r"\baccelerate\S*[ .-]launch\b", started) else []


def option(words: list[str], name: str) -> str | None:
    """The value of --name in a command line, however the launcher takes it: _ or -, with or without =."""
    for word, value in pairwise([*words, ""]):
        flag, equals, own = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            return own if equals else value
    return None


def asked_precision() -> str | None:
    """The mixed precision that was asked for, or None. Raises: UserError for one that there is not here."""
    given = os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower()
    if not given or (given == "no" and not _chose_no()):
        return None
    if given not in PRECISIONS:
        allowed = ", ".join(PRECISIONS)
        raise UserError(f"accelerate launch asks for mixed_precision {given}; there are {allowed}: give it another")
    return given


def _chose_no() -> bool:
    """Whether 'no' is anybody's choice: the launcher tells it of whoever chose nothing, too."""
    words = launcher_words()
    return not words or option(words, "mixed_precision") is not None or "mixed_precision" in _config_of(words)


def _config_of(words: list[str]) -> dict:
    """The launcher's config file: the one that is named, or that of `accelerate config`; {} if there is none."""
    import yaml
    from accelerate.commands.config.config_args import default_config_file

    path = Path(option(words, "config_file") or default_config_file)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def asked_accumulation() -> int | None:
    """The gradient accumulation steps that were asked for, or None."""
    words = launcher_words()
    given = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") or option(words, "gradient_accumulation_steps")
    return int(given) if given and given.isdecimal() else None


def followed(part: str, settings: RunSettings, device: torch.device) -> tuple[RunSettings, list[str]]:
    """The settings as the launcher asks for, where they leave it open; and a line for what is not followed."""
    train, notes = settings.train, []
    changes: dict[str, Any] = {}
    asked = asked_precision()
    if asked == "fp16" and train.mixed_precision == "auto" and part == "vae":
        changes["mixed_precision"] = "bf16" if native_bf16(device) else "no"
        notes.append(
            "accelerate launch asks for fp16, which overflows in autoencoders: "
            f"train.mixed_precision {changes['mixed_precision']} is taken here"
        )
    elif asked and train.mixed_precision not in ("auto", asked):
        notes.append(
            f"accelerate launch asks for mixed_precision {asked}, and train.mixed_precision {train.mixed_precision} "
            "counts: set it to auto to follow"
        )
    count, own = asked_accumulation(), train.gradient_accumulation_steps
    if count is not None and count != own:
        if part != "clip" and "gradient_accumulation_steps" not in train.model_fields_set:
            changes["gradient_accumulation_steps"] = count
            notes.append(f"train.gradient_accumulation_steps {count}, as accelerate launch asks for")
        else:
            notes.append(
                f"accelerate launch asks for {count} gradient_accumulation_steps, and "
                f"train.gradient_accumulation_steps {own} counts"
            )
    return settings.model_copy(update={"train": train.model_copy(update=changes)}), notes
