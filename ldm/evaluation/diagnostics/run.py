"""Why does a run generate noise? The complete chain, from data to images, in the order in which errors propagate.

Each check passes, warns or fails, and then names the cause and the setting to change. What fails after the
first failure may only be its consequence. A check that depends on a failed one is skipped.

Each limit is a constant beside its check.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.evaluation.diagnostics.findings import Finding, guarded

if TYPE_CHECKING:
    from ldm.evaluation.diagnostics.context import RunContext


Checks = dict[str, tuple["Callable[[RunContext], Finding]", tuple[str, ...]]]


def checks(stage: str = "ldm") -> Checks:
    """Name -> (check, names of those that must not have failed or been skipped), in order."""
    from ldm.evaluation.diagnostics import data as of_data
    from ldm.evaluation.diagnostics import learning as of_learning
    from ldm.evaluation.diagnostics import model as of_model
    from ldm.evaluation.diagnostics import sampling as of_sampling
    from ldm.evaluation.diagnostics import stages as of_stages
    from ldm.evaluation.diagnostics import text_probe as of_text

    sound = ("files", "weights", "data", "channels")
    every: Checks = {
        "files": (of_model.check_files, ()),
        "weights": (of_model.check_weights, ("files",)),
        "data": (of_data.check_data, ("files",)),
        "channels": (of_data.check_channels, ("files",)),
        "captions": (of_data.check_captions, ("files", "data")),
        "dropout": (of_data.check_dropout, ("files", "data")),
        "vae": (of_model.check_vae, sound),
        "latents": (of_model.check_latents, sound),
        "tokenizer": (of_model.check_tokenizer, ("files",)),
        "text": (of_model.check_text, ("files", "weights", "tokenizer")),
        "retrieval": (of_stages.check_retrieval, ("files", "weights", "data", "captions", "tokenizer")),
        "unseen": (of_text.check_unseen_prompts, ("files", "weights", "tokenizer", "text")),
        "parts": (of_model.check_parts, ("files",)),
        "training": (of_learning.check_training, ("files",)),
        "progress": (of_learning.check_progress, ("files",)),
        "schedule": (of_sampling.check_schedule, ("files",)),
        "scheduler": (of_sampling.check_scheduler, ("files",)),
        "ema": (of_learning.check_ema, (*sound, "tokenizer")),
        "loss": (of_learning.check_loss, (*sound, "tokenizer")),
        "gap": (of_learning.check_gap, (*sound, "tokenizer")),
        "conditioning": (of_learning.check_conditioning, (*sound, "tokenizer", "captions")),
        "sampler": (of_sampling.check_sampler, ("files", "weights", "channels", "tokenizer")),
        "samples": (of_sampling.check_samples, (*sound, "tokenizer")),
        "guidance": (of_sampling.check_guidance, ("files", "weights", "channels", "tokenizer")),
    }
    alone = {
        "vae": ("files", "weights", "data", "vae", "latents", "training", "progress"),
        "clip": (
            "files",
            "weights",
            "data",
            "captions",
            "tokenizer",
            "text",
            "training",
            "progress",
            "retrieval",
            "unseen",
        ),
    }
    return {name: every[name] for name in alone.get(stage, [name for name in every if name != "retrieval"])}


def examine(path: Path, limit: int = 64, device: str | None = None) -> Iterator[Finding]:
    """The findings about a run, one of its checkpoints or an exported model, each as soon as it is there.

    Args: limit: items of each split that are measured on.
    Raises: UserError if there is nothing at `path` that could be examined.
    """
    from ldm.evaluation.diagnostics.stages import context_of

    context, unusable = context_of(Path(path), limit, device), set()
    for name, (check, needs) in checks(context.stage).items():
        blocked = [need for need in needs if need in unusable]
        if blocked:
            finding = Finding(name, "skip", f"not checked, because of {blocked[0]}")
        else:
            finding = guarded(name, partial(check, context))
        if finding.status in ("fail", "skip"):
            unusable.add(name)
        yield finding
