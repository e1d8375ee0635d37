"""All stages of a project, then its evaluation, export and image grid; what is finished is skipped."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.apps.stages import STAGES, amount
from ldm.cli.train_stage import check_sharding, fit, quiet_libraries
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from ldm.config.settings import RunSettings

EVALUATED = 128  # held-out images, at most
PROMPTS, PER_PROMPT = 12, 4  # of the image grid


def train_project(config: Path, given: dict, output: str | None = None) -> None:
    """All stages of a project, its evaluation and export; what is finished is skipped."""
    from ldm.apps.project import settings_for
    from ldm.apps.stages import stages
    from ldm.config.loading import load, run_dir
    from ldm.hub.export import refuse_foreign
    from ldm.training.distributed import start_world
    from ldm.utils.runtime import prepare_threads

    chosen = {part: load(part, config, settings_for(part, given)) for part in STAGES}
    check_sharding(chosen["ldm"])
    parts = stages(chosen["ldm"])  # type: ignore[arg-type]
    prepare_threads(chosen["ldm"].train.threads)
    quiet_libraries()
    model = Path(output).expanduser() if output else Path(f"{chosen['ldm'].name}-model")
    refuse_foreign(model)  # before the work, not after it
    for number, part in enumerate(parts, start=1):
        head = f"[{number}/{len(parts)}] {STAGES[part]}"
        earlier = [run_dir(chosen[one], one) for one in parts[: number - 1]] if part == "ldm" else []
        if finished_for_main(part, chosen[part], earlier):
            say(f"{head}: finished before")
            continue
        say(f"{head}: {amount(chosen[part])}, in {run_dir(chosen[part], part)}")
        fit(part, chosen[part], began=time.time())
        forget()
    if start_world().is_main_process:
        finish(run_dir(chosen["ldm"], "ldm"), model, exported=chosen["ldm"].vae != "identity")  # type: ignore[attr-defined]
        compare(parts, chosen)
        made = model if (model / "model_index.json").is_file() else run_dir(chosen["ldm"], "ldm")
        print(f'next: ldm generate -m {made} "a prompt", or ldm app -m {made}')


def say(text: str) -> None:
    """A line of the main process."""
    from ldm.training.distributed import start_world

    if start_world().is_main_process:
        print(text, flush=True)


def finished(part: str, settings: "RunSettings", earlier: Sequence[Path] = ()) -> bool:
    """Whether a run has trained all its steps, by these settings, and written what comes after them.

    Args:
        earlier: runs that it builds on; if one was trained anew since, it is not finished.
    Raises: UserError: it was trained by settings that a continuation could not have.
    """
    from ldm.config.loading import load, run_dir
    from ldm.training.resume_rules import compare
    from ldm.training.validation import reason_to_stop, validations
    from ldm.utils import checkpoint_files as checkpoint

    run = run_dir(settings, part)
    if not (run / "config.yaml").is_file() or not checkpoint.finished(run):
        return False
    done, steps = load(part, run / "config.yaml"), settings.train.num_steps
    last = checkpoint.saved(run / "checkpoints")[-1:]  # none where they were removed to save space
    before_end = any(one.name < checkpoint.name(steps) for one in last)
    if done.train.num_steps < steps or (before_end and not reason_to_stop(validations(last[0]), settings)):
        return False
    if not all(newer(run / "final", one) for one in earlier):
        return False
    before, now = ({"settings": one.model_dump(mode="json"), "identity": {}} for one in (done, settings))
    for note in compare(before, now, (), str(run)):
        say(f"note: {run} is finished, and not trained again: {note}")
    return part != "vae" or (run / "report.json").is_file()


def finished_for_main(part: str, settings: "RunSettings", earlier: Sequence[Path]) -> bool:
    """As `finished`, by the files of the main process."""
    from ldm.training.world import from_main

    return from_main(lambda: "yes" if finished(part, settings, earlier) else "no") == "yes"


def forget() -> None:
    """Free what a stage held, so that the next one may have another precision and all of the memory."""
    import gc

    import torch
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def finish(run: Path, model: Path, exported: bool = True) -> None:
    """Evaluation, export and image grid of a finished run, unless they are there and newer than it.

    `exported`: whether diffusers has a pipeline for it; for models in pixel space it has none.
    """
    report, metrics = run.parent / "report", run.parent / "report" / "metrics.json"
    if not newer(metrics, run):
        print(f"report: {report}", flush=True)
        try:
            command("evaluate", str(run), "-o", str(report), *amount_evaluated(run))
        except Exception as error:  # too few images, say: the model is finished all the same
            print(f"no report: {error}")
    if not exported:
        return
    if not newer(model / "model_index.json", run):
        print(f"export: {model}", flush=True)
        try:
            command("export", str(run), "-o", str(model), *(["--metrics", str(metrics)] if metrics.is_file() else []))
        except UserError as error:  # of a VQModel, say, which ldm generates from, and diffusers' pipeline does not
            return print(f"no export: {error}")
    if not newer(model / "grid.png", model / "model_index.json"):
        draw_grid(run, model)


def amount_evaluated(run: Path) -> list[str]:
    """--samples for one's own images, --quick for glyphs."""
    from ldm.cli.evaluate import KNOWN, OWN, source_of

    suite = KNOWN.get(source_of(run), OWN)
    return ["--samples", str(EVALUATED)] if suite is OWN else ["--quick"] if suite.quick else []


def newer(path: Path, than: Path) -> bool:
    """Whether a file was made after a run was finished, or after another file."""
    of = than / "final" if than.is_dir() else than
    return path.exists() and path.stat().st_mtime >= of.stat().st_mtime


def command(*words: str) -> None:
    """What `ldm WORDS` does."""
    from ldm.cli.main import build_parser

    args = build_parser(list(words)).parse_args(list(words))
    args.run(args)


def draw_grid(run: Path, model: Path) -> None:
    """grid.png in the model's folder: images of training and held-out captions, none picked out, a row for each."""
    from ldm.config.loading import load
    from ldm.data import build
    from ldm.pipelines.loading import load_pipeline
    from ldm.utils.image_grid import image_grid, save_png

    settings = load("ldm", run / "config.yaml")
    seen, new = settings.sampling.prompts, []
    if not seen:
        data = build(settings.data)
        seen = captions_of(data.train)
        new = [caption for caption in captions_of(data.validation) if caption not in seen]
    images = load_pipeline(model)([*seen, *new], num_images_per_prompt=PER_PROMPT, seed=0).images
    save_png(image_grid(images, PER_PROMPT), model / "grid.png")
    held_out = f"; held-out captions: {'; '.join(new)}" if new else ""
    print(f"{model / 'grid.png'}: a row for each of: {'; '.join(seen)}{held_out}")


def captions_of(data: Any) -> list[str]:
    """Captions of evenly spaced images of a split; one empty prompt where there are none."""
    import numpy as np

    from ldm.data import evenly_spaced_indices

    rng = np.random.default_rng(0)
    found = [data.caption(int(i), rng) for i in evenly_spaced_indices(len(data), PROMPTS // 2)]
    return list(dict.fromkeys(found))


def compare(parts: Sequence[str], chosen: dict[str, "RunSettings"]) -> None:
    """The minutes of all stages beside those that were planned, where both are known."""
    import json

    from ldm.config.loading import run_dir
    from ldm.utils.terminal import duration_text

    spent = planned = 0.0
    for part in parts:
        log = run_dir(chosen[part], part) / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        last = json.loads(lines[-1]) if lines else {}
        if "minutes" not in last:
            return
        spent, planned = spent + last["minutes"], planned + last["planned_minutes"]
    print(f"training took {duration_text(60 * spent)}, and {duration_text(60 * planned)} were planned")
