"""From a folder of images to a project file: the preset for this device, what the images are, and the plan.

The file stands by itself: it extends no other, and each block is preceded by what was measured for it.
"""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ldm.apps.stages import PER_MINUTE, RESERVE
from ldm.config.loading import load
from ldm.config.yaml_io import dump, merge, read
from ldm.utils.errors import UserError
from ldm.utils.file_names import windows_objection
from ldm.utils.image_sizes import bucket_sizes, size_of

PRESETS = {"cpu": "folder-cpu.yaml", "mps": "folder-cpu.yaml", "cuda": "folder.yaml"}
TITLES = {"clip": "Text encoder", "vae": "Autoencoder", "ldm": "U-Net"}

Say = Callable[[str], None]


def name_of(source: str) -> str:
    """A project's name from the place of its images: 'photos/My cats/' -> 'My-cats'."""
    stem = Path(source).absolute().name if Path(source).exists() else source.rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^\w.-]+", "-", stem.removesuffix(".parquet")).strip("-.")
    return f"my-{name}".rstrip("-") if not name or windows_objection(name) else name


def write_project(path: Path, source: str, minutes: float, memory: float | None, given: dict, say: Say) -> None:
    """Look at the images, plan the training and write its project file; it appears only once it is complete.

    Args:
        path: the YAML file to write.
        source: a folder, a .parquet file or a Hub id.
        minutes: for all of it.
        memory: bytes that a stage may take; None = what the device has.
        given: settings of the user, nested as in a project file; they are never changed.
        say: takes a line about each thing found.
    Raises: UserError: images that cannot be read, or too little time.
    """
    import tempfile

    from ldm.apps.budget import propose
    from ldm.data.inspection import transparency_text
    from ldm.utils.atomic_files import atomic_write, readable_io_errors

    with readable_io_errors(path, "start it in a folder that can be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
    report = look_at(source, given)
    say(f"data: {facts(report)}")
    for note in filter(None, [*report["notes"], transparency_text(report)]):
        say(f"note: {note}")
    logging.getLogger("ldm.data").setLevel(logging.ERROR)  # else each stage says them again
    document = base_document(path.stem, source, report, given)
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / path.name
        base.write_text(dump(document), encoding="utf-8")
        build_data(base)
        reserve = RESERVE + PER_MINUTE * minutes
        proposals = propose(base, minutes, memory, [*dotted(given)], reserve, say)
    for one in proposals:
        say(f"plan: {line_of(one)}")
    text = "\n".join(commented(path, document, proposals, minutes, facts(report)))
    with readable_io_errors(path, "start it in a folder that can be written"):
        atomic_write(path, text.encode())


def look_at(source: str, given: dict) -> dict[str, Any]:
    """The report of `ldm data check`. Raises: UserError: if nothing can be read, or a given setting is wrong."""
    from ldm.config.settings import ClipModel
    from ldm.data.inspection import inspect
    from ldm.formats.sources import open_source

    if source in ("glyphs", "digits", "toy"):
        raise UserError(f"{source!r} is a built-in data set: `ldm train CONFIG` with one of its presets in configs/")
    checked = {part: load(part, preset(), settings_for(part, given)).data for part in TITLES}  # of ranges and names
    options = checked["vae"].model_copy(update={"source": source})
    keeps = options.channels == 4  # which is never chosen for anyone
    report = inspect(open_source(options), options, ClipModel().context_length, chosen=keeps)
    if len(report["skipped"]) == report["pictures"]:
        first = report["skipped"][0]
        raise UserError(f"{source}: none of {report['pictures']} images can be read; {first['id']}: {first['reason']}")
    return report


def preset() -> Path:
    """The project file that is started from on this device."""
    from ldm.training.devices import training_device
    from ldm.utils.assets import shipped_configs

    return shipped_configs() / PRESETS[training_device().type]


def settings_for(part: str, given: dict) -> dict:
    """What is given for one stage: what is given for all of them, and for its block."""
    return merge({key: value for key, value in given.items() if key not in TITLES}, given.get(part, {}))


def build_data(config: Path) -> None:
    """Decode all images into the cache: what the data stop a training for, they stop it for here."""
    from ldm.data import build

    build(load("vae", config).data)


def facts(report: dict[str, Any]) -> str:
    """'6468 images (6145 train, 323 validation), colour, captions: 12936'."""
    from ldm.data.inspection import divided_text

    divided = divided_text(report)
    usable, captions = report["pictures"] - len(report["skipped"]), report["captions"]["total"]
    words = f"captions: {captions}" if captions else "no captions (the model will be unconditional)"
    left_out = f", {len(report['skipped'])} left out" if report["skipped"] else ""
    kinds = {1: "grey", 3: "colour", 4: "colour and transparency"}
    return f"{usable} images ({divided}{left_out}), {kinds[report['channels']]}, {words}"


def base_document(name: str, source: str, report: dict[str, Any], given: dict) -> dict[str, Any]:
    """The preset for this device with what the images are, and what the user wants."""
    document = read(preset())
    files = {"horizontal_flip": False} | ({"repeats": True} if report["repeats"] else {})
    data = {"source": source, "channels": report["channels"], "files": files}
    document = {"name": name} | merge(document, {"data": data})
    if not report["captions"]["total"]:
        document.pop("clip", None)
        text = {"source": "none", "train": False}
        document = merge(document, {"ldm": {"text": text, "sampling": {"guidance_scale": 1.0}}})
    chosen = merge(document["data"], given.get("data", {}))
    size, step = size_of(chosen["resolution"]), chosen["files"].get("bucket_step")
    smallest = min(map(min, bucket_sizes(size, step) if step else [size]))
    if "vae" in document and document["vae"].get("crop", 0) >= smallest:
        document["vae"]["crop"] = 0  # the images are small themselves
    document = merge(document, given)
    for part in TITLES.keys() & document.keys():  # what is given for all stages wins over the preset's for one
        own = {key: value for key, value in given.items() if key in document[part]}
        document[part] = merge(merge(document[part], own), given.get(part, {}))
    return document


def dotted(given: dict, prefix: str = "") -> Iterator[str]:
    """{'train': {'num_steps': 9}} -> 'train.num_steps'."""
    for name, value in given.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def line_of(one: Any) -> str:
    """What a stage will see, and what was measured for it."""
    from ldm.apps.budget import shape_text, speed_text
    from ldm.utils.terminal import duration_text

    train = one.settings.train
    return (
        f"{TITLES[one.part]} {shape_text(one.settings)}, {one.forecast.cost.exported / 1e6:.2f} M parameters: "
        f"{one.images:,} images ({train.num_steps} steps of {train.batch_size}) at "
        f"{speed_text(one.forecast, train.batch_size)}, about {duration_text(one.seconds)}"
    )


def reason_of(one: Any) -> str:
    """Why this width and not another."""
    from ldm.apps.budget import LEAST

    if not one.changes.get("model"):
        return "The width is the config's own."
    if one.images >= one.target:
        return f"The widest of those tried that sees {one.target:,.0f} images in its time."
    return f"The narrowest of those tried; it should see {one.target:,.0f} images, and at least {LEAST[one.part]:,}."


def commented(path: Path, document: dict, proposals: list, minutes: float, about: str) -> Iterator[str]:
    """The lines of the project file."""
    import torch

    from ldm import __version__

    yield f"# {about}."
    machine = proposals[0].forecast
    unit, each = ("GPU", 1) if machine.device.type == "cuda" else ("CPU core", torch.get_num_threads())
    amount = machine.world * each
    yield f"# Planned by ldm {__version__} for {minutes:g} minutes of {amount} {unit}{'s' if amount > 1 else ''}."
    yield f"# Train with `ldm train {path}`; edit what you like before it starts. All settings with their values:"
    yield f"# `ldm train ldm {path} --print-config`."
    blocks = {one.part for one in proposals}
    yield dump({key: value for key, value in document.items() if key not in TITLES})
    for one in proposals:
        yield f"# {line_of(one)}."
        yield f"# {reason_of(one)}"
        yield dump({one.part: merge(document.get(one.part, {}), one.changes)})
    for part in TITLES.keys() - blocks:
        if part in document:
            yield dump({part: document[part]})
