"""The stages of a project, and what a plan gives each of them; torch is not needed to know it."""

from typing import TYPE_CHECKING

from ldm.utils.terminal import duration_text

if TYPE_CHECKING:
    from ldm.config.settings import LdmSettings, RunSettings

STAGES = {"clip": "text encoder", "vae": "autoencoder", "ldm": "U-Net"}
SHARES = {"clip": 0.12, "vae": 0.15}  # of the time, at most, unless a stage needs more for its least images
MIN_BATCH = {"clip": 32, "vae": 16, "ldm": 16}  # a plan halves no batch below it
RESERVE, PER_MINUTE = 45.0, 1.5  # seconds for what is no training: export, report, image grid


def stages(settings: "LdmSettings") -> list[str]:
    """The stages that a project trains, in order."""
    if settings.distill.teacher or settings.start.model:
        return ["ldm"]
    wanted = {"clip": settings.text.source == "run", "vae": settings.vae == "run", "ldm": True}
    return [part for part, needed in wanted.items() if needed]


def amount(settings: "RunSettings") -> str:
    """'470 steps of 64, about 11 min'."""
    train = settings.train
    planned = f", about {duration_text(60 * train.planned_minutes)}" if train.planned_minutes else ""
    return f"{train.num_steps} steps of {train.batch_size}{planned}"
