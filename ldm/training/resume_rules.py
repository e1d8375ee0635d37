"""What may differ between a run and its continuation: each setting is free, noted, or refused.

A refused one would make it another model or another training (the seed, the data, the shape of a network);
`--allow-changed NAME` accepts it anyway. Data and components are compared by their digests, so a folder may move.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ldm.utils.errors import UserError

FREE, NOTED, REFUSED = "free", "noted", "refused"
# A path, or a block with all that is in it; the longest that fits counts.
CLASSES = {
    "name": FREE,
    "output_dir": FREE,
    "seed": REFUSED,
    "data": REFUSED,
    "data.source": FREE,  # its content is compared, wherever it lies
    "data.cache_dir": FREE,
    "data.glyphs.font_file": FREE,
    "data.files.max_bad_fraction": FREE,
    "data.files.image_column": FREE,
    "optim.name": REFUSED,
    "optim.lr": NOTED,
    "optim.betas": NOTED,
    "optim.weight_decay": NOTED,
    "optim.warmup_steps": NOTED,
    "optim.schedule": NOTED,
    "optim.decay_fraction": NOTED,
    "optim.grad_clip": NOTED,
    "train.num_steps": NOTED,
    "train.batch_size": REFUSED,  # a step would begin at another position in the data
    "train.gradient_accumulation_steps": NOTED,
    "train.mixed_precision": NOTED,
    "train.compile": NOTED,
    "train.gradient_checkpointing": FREE,
    "train.ema_decay": NOTED,
    "train.ema_offload": FREE,
    "train.log_every": FREE,
    "train.sample_every": FREE,
    "train.save_every": FREE,
    "train.keep_checkpoints": FREE,
    "train.async_checkpoints": FREE,
    "train.keep_best": NOTED,
    "train.patience": NOTED,
    "train.max_copies": NOTED,
    "train.num_workers": FREE,
    "train.threads": FREE,
    "train.planned_minutes": FREE,
    "train.hang_minutes": FREE,
    "train.report_to": FREE,
    "model": REFUSED,
    "model.attention": FREE,
    "model.dropout": NOTED,
    "loss": NOTED,
    "crop": REFUSED,
    "vae": FREE,  # its weights are compared, wherever they lie
    "cache_latents": NOTED,  # latents of the cache are rounded
    "latents_on_device": FREE,
    "text": REFUSED,
    "text.source": FREE,  # likewise
    "denoiser": REFUSED,
    "mlp": REFUSED,
    "noise": REFUSED,
    "alignment": NOTED,
    "caption_dropout": NOTED,
    "sampling": FREE,
    "distill": REFUSED,
    "distill.teacher": FREE,  # likewise
    "start": REFUSED,
    "start.model": FREE,  # likewise
}


# What may differ between the processes of one training: where things are, and how many hands there are.
OF_A_NODE = {
    *("output_dir", "data.source", "data.cache_dir", "data.glyphs.font_file"),
    *("vae", "text.source", "start.model", "distill.teacher", "alignment.source"),
    *("train.num_workers", "train.threads", "train.report_to", "train.planned_minutes"),
}


def comparable(settings: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Dotted path -> value, as text, of all settings that the processes of one training share."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        here = f"{path}{key}"
        if isinstance(value, Mapping):
            found |= comparable(value, f"{here}.")
        elif here not in OF_A_NODE:
            found[here] = str(value)
    return found


def class_of(path: str) -> str | None:
    """`FREE`, `NOTED` or `REFUSED`; None for a setting that no entry fits."""
    parts = path.split(".")
    return next((CLASSES[p] for n in range(len(parts), 0, -1) if (p := ".".join(parts[:n])) in CLASSES), None)


def compare(
    before: Mapping[str, Any], now: Mapping[str, Any], allowed: Collection[str], source: str, fits: bool = True
) -> list[str]:
    """Lines on what changed since a checkpoint was written.

    Args:
        before, now: {"settings": nested dictionary as `model_dump(mode="json")` gives it, "identity": {what: digest},
            "images": how many there are to train on, if known}.
        allowed: refused names (or blocks of them) that may differ this time.
        source: the checkpoint, for the message.
        fits: whether its weights have the shapes of the model; if not, no `allowed` can help.
    Raises: UserError naming every refused change.
    """
    notes = []
    if "settings" not in before:  # format 1 of checkpoints
        before = {"settings": {"seed": before["seed"]}, "identity": {}}
        notes.append(f"{source} is of an older format without its settings: only the seed was compared")
    changes = [
        (path, f"{path} was {was}, now {is_now}", class_of(path))
        for path, (was, is_now) in _changed(before["settings"], now["settings"])
    ]
    old, new = before["identity"], now["identity"]
    counts = (before.get("images"), now.get("images"))
    changes += [
        (name, _identity_changed(name, old[name], new[name], counts), REFUSED)
        for name in sorted(old.keys() & new.keys())
        if old[name] != new[name]
    ]
    unknown = set(allowed) - {path for path, *_ in changes} - {path.rpartition(".")[0] for path, *_ in changes}
    if unknown:
        raise UserError(f"--allow-changed {', '.join(sorted(unknown))}: nothing of that name differs from {source}")
    refused = []
    for path, text, rule in changes:
        if rule == REFUSED and not (fits and {path, path.rpartition(".")[0]} & set(allowed)):
            refused.append((path, text))
        elif rule != FREE:
            notes.append(text)
    if refused:
        advice = f", or take it with --allow-changed {' '.join(path for path, _ in refused)}" if fits else ""
        raise UserError(
            f"{source} was trained otherwise: {'; '.join(text for _, text in refused)}: put it back, or start another "
            f"run with another --name or --output-dir{advice}"
        )
    return notes


def _identity_changed(name: str, was: str, now: str, counts: tuple[int | None, int | None]) -> str:
    """'data: 1,000 training images, now 1,001'; digests where nothing better is known.

    Args:
        counts: of the training images, then and now.
    """
    if name == "data" and None not in counts:
        then, today = (f"{count:,}" for count in counts)
        return f"data: {then} training images, now {today}" if then != today else "data: as many images, not the same"
    return f"{name} was {was[:12]}, now {now[:12]}"


def _changed(
    before: Mapping[str, Any], now: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Dotted paths and both values of what differs; a setting that one side does not know differs from nothing."""
    for key in before.keys() & now.keys():
        here = f"{path}{key}"
        if isinstance(before[key], Mapping) and isinstance(now[key], Mapping):
            yield from _changed(before[key], now[key], f"{here}.")
        elif before[key] != now[key]:
            yield here, (before[key], now[key])
