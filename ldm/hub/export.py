"""`ldm export`: one self-contained folder of stock classes from a finished run (or from another export).

The folder is written beside its destination and renamed at the end, so a half-written export never has its name. Beside
the components it holds what its card shows: generated images, the curves of its trainings, its metrics.
"""

import importlib.util
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.model_folder import COMPONENTS
from ldm.pipelines.pipeline import Pipeline
from ldm.pipelines.saving import DTYPES, refuse_own, save_folder, save_variant, write_json
from ldm.utils.atomic_files import exclusive_lock, readable_io_errors, staged
from ldm.utils.errors import UserError
from ldm.utils.untrusted_files import read_json

log = logging.getLogger(__name__)
BOTH = "both"  # fp32, and fp16 as the variant that stock loading takes with variant="fp16"
LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")  # as the Hub writes them
OURS = ("glyphs", "digits")  # data of which we know the licence that a model of it can have


def export(
    run: str | Path,
    out: Path,
    dtype: str = "fp32",
    name: str | None = None,
    metrics: Path | None = None,
    prompts: Sequence[str] = (),
    license: str | None = None,
) -> Path:
    """Write the model of `run` as one folder.

    Args:
        run: folder of a finished LDM run, or an exported model.
        out: the folder to write; an earlier export there is replaced, any other folder is refused.
        dtype: "fp32" or "fp16" weights, or "both": fp16 ones beside the others.
        name: of the model, in its card and ldm.json; None = the name of `out`.
        metrics: JSON file for the card's table, as `ldm evaluate` writes it; None = that of an earlier export.
        prompts: of the card's images; none = those that the run's sample grids were generated with.
        license: the Hub's name of the weights' licence; None = as it was, and of our own data "apache-2.0".

    Raises: UserError if the run is unfinished or `out` is something else.
    """
    from ldm.hub.gallery import draw_gallery
    from ldm.hub.model_card import training_facts, write_card

    if dtype not in (*DTYPES, BOTH):
        raise UserError(f"--dtype must be one of {', '.join([*DTYPES, BOTH])}, got {dtype!r}")
    check_license(license)
    out = Path(out)
    place = out.resolve()
    refuse_foreign(out)
    pipeline = load_pipeline(run, device="cpu", dtype=DTYPES.get(dtype))
    refuse_own(pipeline, str(run))
    facts = training_facts(Path(run)) or pipeline.defaults.get("training", {})
    facts |= {"prompts": list(prompts)} if prompts else {}
    license = license or pipeline.defaults.get("license") or own_license(facts)
    with readable_io_errors(out, "choose another folder, or make room"), exclusive_lock(place), staged(place) as stage:
        pipeline.defaults |= {"training": facts, "license": license}
        save_folder(pipeline, stage, name or place.name)
        if dtype == BOTH:
            save_variant(load_pipeline(stage, device="cpu", dtype=torch.float16), stage)
        _write_graphs(stage)
        _keep_pictures(out, stage)
        _keep_records(pipeline, Path(run), metrics, stage)
        draw_gallery(stage, facts.get("prompts", []))
        write_card(stage)
    return out


def renew_card(
    folder: Path,
    metrics: Path | None = None,
    prompts: Sequence[str] = (),
    license: str | None = None,
    data: str | None = None,
) -> None:
    """Write the card of an exported model again; its weights stay as they are.

    Args:
        metrics: JSON file for the card, as `ldm evaluate` writes it; None = the one that is there.
        prompts: of the card's images; none = the images that are there, or new ones of the prompts in ldm.json.
        license: see `export`; data: what the model was trained on, in words; None = as it was.
    Raises: UserError: `folder` is no exported model.
    """
    from ldm.hub.gallery import FOLDER, draw_gallery, pictures
    from ldm.hub.model_card import write_card

    if not ((folder / "model_index.json").is_file() and (folder / "ldm.json").is_file()):
        raise UserError(f"{folder} is no exported model (no model_index.json or no ldm.json): `ldm export` writes one")
    check_license(license)
    model = read_json(folder / "ldm.json")
    facts = model.get("training", {}) | ({"prompts": list(prompts)} if prompts else {})
    facts |= {"about_data": data} if data else {}
    told = model | {"training": facts, "license": license or model.get("license") or own_license(facts)}
    with readable_io_errors(folder, "make the folder writable"):
        if metrics:
            write_json(folder / "metrics.json", _quoted(metrics))
        if told != model:
            write_json(folder / "ldm.json", told)
        if prompts or not pictures(folder):
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
            draw_gallery(folder, facts.get("prompts", []))
        write_card(folder)


def check_license(license: str | None) -> None:
    """Raises: UserError for what is no name of a licence on the Hub."""
    if license is not None and not LICENSE.fullmatch(license):
        raise UserError(f"--license must be a name as the Hub has it, such as apache-2.0 or cc-by-4.0, got {license!r}")


def own_license(facts: dict) -> str | None:
    """The licence of a model of our own data; None of any other."""
    return "apache-2.0" if facts.get("data") in OURS else None


def _quoted(metrics: Path) -> dict:
    """What a card quotes of a metrics.json: its summary, or all of a file without one."""
    found = read_json(metrics)
    return {"summary": found["summary"]} if "summary" in found else found


def _write_graphs(stage: Path) -> None:
    """Graphs for ONNX Runtime, of the weights as they now lie there; a model without them is complete, and slower."""
    if importlib.util.find_spec("onnx") is None:
        log.warning(
            "onnx is not installed, so no graphs were written and sampling on a CPU is slower: pip install onnx"
        )
        return
    from ldm.pipelines.onnx_export import write_graphs

    write_graphs(load_pipeline(stage, device="cpu", engine="torch"), stage)


def refuse_foreign(out: Path) -> None:
    """Raises: UserError unless `out` is new, empty or an earlier export."""
    if out.is_file():
        raise UserError(f"{out} is a file: name a folder for the export")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not ((out / "model_index.json").is_file() and (out / "ldm.json").is_file()):
        raise UserError(f"{out} holds something that is no earlier export: name a new folder, or empty it")
    known = {*COMPONENTS, "model_index.json", "ldm.json", "README.md", "NOTICE", "metrics.json"}
    known |= {"gallery", "logs", "lora"}
    strange = sorted(p.name for p in out.iterdir() if p.name not in known and p.suffix.lower() not in (".png", ".jpg"))
    if strange:
        raise UserError(f"{out} also holds {', '.join(strange[:3])}, which replacing it would delete: move that first")


def _keep_pictures(out: Path, stage: Path) -> None:
    """An image grid that was put beside an earlier export stays with the new one."""
    for picture in [p for p in out.glob("*") if p.suffix.lower() in (".png", ".jpg")]:
        shutil.copy2(picture, stage)


def _keep_records(pipeline: Pipeline, run: Path, metrics: Path | None, stage: Path) -> None:
    """The metrics that the card quotes, adapters, and the TensorBoard curves of each training that the run knows."""
    from ldm.hub.model_card import part_runs

    assert pipeline.folder is not None  # it was loaded from one: an earlier export, or final/ of a run
    earlier = pipeline.folder.paths["unet"].parent
    if metrics or (earlier / "metrics.json").is_file():
        write_json(stage / "metrics.json", _quoted(metrics or earlier / "metrics.json"))
    if (earlier / "NOTICE").is_file():
        shutil.copyfile(earlier / "NOTICE", stage / "NOTICE")
    for name in ("logs", "lora"):  # adapters are in the weights already, and may be wanted alone
        if (earlier / name).is_dir():
            shutil.copytree(earlier / name, stage / name)
    for part, path in part_runs(run).items():
        for i, events in enumerate(sorted(path.glob("logs/**/events.out.tfevents.*"))):
            (stage / "logs" / part).mkdir(parents=True, exist_ok=True)
            began = events.name.split(".")[3]  # its name also tells the machine's
            shutil.copyfile(events, stage / "logs" / part / f"events.out.tfevents.{began}.{i}")
