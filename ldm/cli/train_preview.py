"""`ldm train FOLDER --dry-run`: what it would do, in a few lines, without measuring, writing or opening an image.

Neither torch nor diffusers is imported, so that the answer is there at once.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.apps.project import PRESETS, settings_for
from ldm.apps.stages import PER_MINUTE, RESERVE, SHARES, STAGES, amount, stages
from ldm.config.loading import load, run_dir
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.assets import shipped_configs
from ldm.utils.terminal import duration_text

if TYPE_CHECKING:
    from ldm.config.settings import DataOptions, RunSettings

BUILT_IN = ("glyphs", "digits", "toy")


def lines(source: str, project: Path, minutes: float, given: dict, output: str | None) -> Iterator[str]:
    """What `ldm train SOURCE` would do, a line for each step.

    Args:
        source: a folder of images or a project file; project: the project file, which may not be there yet.
        minutes: for a project that is not planned yet; given: settings of the user, nested as in a project file.
    Raises: UserError: images that are not there, or a setting that is wrong.
    """
    planned = project.is_file()
    base = project if planned or project == Path(source) else shipped_configs() / PRESETS["cpu"]
    named = given if planned else given | {"name": project.stem}
    chosen = {part: load(part, base, settings_for(part, named)) for part in STAGES}
    data = chosen["vae"].data if planned else chosen["vae"].data.model_copy(update={"source": source})
    captioned, text = about(data)
    yield f"data: {text}"
    yield f"plan: {project}, as made before" if planned else f"plan: {project}, to be written for {minutes:g} minutes"
    parts = [part for part in stages(chosen["ldm"]) if planned or captioned or part != "clip"]  # type: ignore[arg-type]
    for number, part in enumerate(parts, start=1):
        run = run_dir(chosen[part], part)
        much = amount(chosen[part]) if planned else share(part, minutes)
        yield f"[{number}/{len(parts)}] {STAGES[part]}: {much}, in {run} ({state(run, chosen[part])})"
    run = run_dir(chosen["ldm"], "ldm")
    model = Path(output or f"{chosen['ldm'].name}-model")
    yield f"then: report in {run.parent / 'report'}, model in {model}{' (there is one)' if model.exists() else ''}"
    yield "dry run: nothing was written or trained. " + (
        f"`ldm train ldm {project} --dry-run` measures time and memory of a stage"
        if planned
        else f"Widths and steps follow from a measurement at the start; `ldm new {source}` makes it and writes the plan"
    )


def about(data: "DataOptions") -> tuple[bool, str]:
    """Whether there are captions, as far as it can be known, and a line on the data; no image is opened."""
    from ldm.data.image_files.dataset import divide
    from ldm.formats.shards import is_pattern
    from ldm.formats.sources import open_source

    if data.source in BUILT_IN:
        return True, f"{data.source}, made by this package"
    if is_pattern(data.source):
        return True, f"{data.source}, shards that are read as they are trained on"
    if not Path(data.source).exists() and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", data.source):  # as `open_source` does
        return True, f"{data.source}, to be fetched from the Hub at the start"
    source = open_source(data)
    captions = sum(len(sample.captions) for sample in source.samples)
    divided = ", ".join(
        f"{len(rows):,} {name}" for name, rows in divide(source.samples, data.files.validation_fraction).items()
    )
    words = f"captions: {captions:,}" if captions else "no captions (the model would be unconditional)"
    found = f"{len(source.samples):,} images ({divided}), {words}; `ldm data check {data.source}` opens them all"
    return captions > 0, f"{data.source}: {found}"


def share(part: str, minutes: float) -> str:
    """'about 12% of the time, 7 min', which a plan gives a stage."""
    if part not in SHARES:
        return f"the rest but for {duration_text(RESERVE + PER_MINUTE * minutes)} of report and export"
    return f"about {SHARES[part]:.0%} of the time, {duration_text(60 * SHARES[part] * minutes)}"


def state(run: Path, settings: "RunSettings") -> str:
    """Where a run stands: 'new', 'continues at step 300' or 'trained before'; no file is verified."""
    saved = checkpoint.saved(run / "checkpoints")
    step = int(saved[-1].name.rpartition("-")[2]) if saved else 0
    if (run / "final").is_dir() and (not saved or step >= settings.train.num_steps):
        return "trained before"
    return f"continues at step {step}" if step else "new"
