"""`ldm evaluate`: does a model draw what the prompt says?

Glyphs: what was asked for, as well as real ones, and anything of its own? Digits: the digit and the colour? Pictures of
one's own: what captions held out say, like real ones, and no copies? Points: how far are they from the density they
should have? What a run was trained on decides which.
"""

import argparse
import importlib
from pathlib import Path
from typing import NamedTuple

from ldm.utils.errors import UserError


class Measure(NamedTuple):
    """How models of some data are measured: the module with its `evaluate(run, args)`, and its --samples."""

    module: str
    samples: int
    quick: int | None = None  # --samples of --quick


# what a run was trained on (data.source); whatever is not here are pictures of one's own
GLYPHS = Measure("ldm.evaluation.glyphs.report", 72, 9)
KNOWN = {
    "": GLYPHS,
    "glyphs": GLYPHS,
    "toy": Measure("ldm.evaluation.toys.report", 20_000),
    "digits": Measure("ldm.evaluation.digits.report", 128),
}
OWN = Measure("ldm.evaluation.images.report", 256, 32)
CHAIN = 8  # models that went on from one another that are asked


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure how well a model obeys its prompts",
        description="Measure a glyph model: obedience to a fixed list of prompts, likeness to real glyphs, novelty, "
        "composition, and the autoencoder, each beside its floor and ceiling. On digits: digit, colour and style. On "
        "your own pictures (name the run): whether its CLIP knows the captions again, likeness to pictures held out, "
        "near copies, the autoencoder. On points (data.source: toy): distance to fresh data, modes, likelihood. Writes "
        "metrics.json, contact sheets and, of glyphs and your own pictures, index.html with everything in it.",
    )
    parser.add_argument("model", nargs="?", help="exported folder, LDM run or Hub id (default: the shipped model)")
    parser.add_argument(
        "--lora", metavar="PATH[:SCALE]", help="adapters to draw with (not --against): a file, or the run that made it"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report"), help="folder to write (default: report)")
    parser.add_argument(
        "--samples",
        type=int,
        help="pictures for each layout (default: 72; other prompts in proportion), for each held-out pair of digit and "
        "colour (128), points (20000), or own pictures held out, one for the caption of each (at most 256)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"glyphs: --samples {GLYPHS.quick}, a few minutes on two cores; own pictures: {OWN.quick}",
    )
    parser.add_argument(
        "--against", metavar="MODEL", help="glyphs: another model, or the report of one, to compare this one with"
    )
    parser.add_argument(
        "--clip", type=Path, metavar="RUN", help="glyphs, own pictures: a run of train_clip.py (default: its own)"
    )
    parser.add_argument(
        "--features", metavar="MODEL", help="glyphs, own pictures: folder of a vision model (DINOv2, say) to compare by"
    )
    parser.add_argument("--seed", type=int, default=0, help="picture i of every prompt is drawn from seed + i")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--guidance", type=float, help="how strictly to follow the prompt (default: the model's)")
    parser.add_argument(
        "--batch", type=int, default=64, help="pictures drawn at once: memory, not results (default: 64)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest there is)")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), help="rendered glyphs (default: cache)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    source = source_of(_here(args.model))
    measure = KNOWN.get(source, OWN)
    _refuse(args, source, measure)
    if args.samples is None:
        args.samples = measure.quick if args.quick else measure.samples
    _check(args)
    model = args.model if measure is GLYPHS else Path(args.model)
    importlib.import_module(measure.module).evaluate(model, args)
    print(f"{args.output / 'metrics.json'}: everything")
    return 0


def source_of(model: str | Path | None) -> str:
    """`data.source` of a run's settings, or what an exported model says that it was; "" where nothing is said.

    What went on from a glyph model is one, whatever pictures it was shown.
    """
    first = ""
    for _ in range(CHAIN):
        source, start = ("", None) if model is None else _said(model)
        first = first or source
        if source == "glyphs" or not start:
            break
        model = start
    return "glyphs" if source == "glyphs" else first


def _said(model: str | Path) -> tuple[str, str | None]:
    """What a model says of itself: its data, and the model that it went on from. Nothing is fetched from the Hub."""
    from ldm.utils.assets import shipped_model, shipped_models
    from ldm.utils.untrusted_files import read_json, read_yaml

    folder, name = Path(model), str(model).removeprefix("models/")
    if not folder.exists() and name in shipped_models():
        folder = shipped_model(name)
    settings = read_yaml(folder / "config.yaml")
    if data := _block(settings, "data"):
        source, start = data.get("source"), _block(_block(settings, "ldm"), "start").get("model")
    else:
        told = read_json(folder / "ldm.json") if (folder / "ldm.json").is_file() else {}
        source, start = (_block(told, "training").get(name) for name in ("data", "start"))
    return str(source or ""), str(start) if start else None


def _block(settings: dict, name: str) -> dict:
    """A mapping in a mapping, {} where there is none."""
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _here(model: str | None) -> str | Path | None:
    """The folder of a model on the Hub, fetched; any other as it is."""
    from ldm.pipelines.model_folder import HUB_ID, resolve_model
    from ldm.utils.assets import shipped_models

    if model is None or Path(model).exists() or model in shipped_models() or not HUB_ID.fullmatch(model):
        return model
    return resolve_model(model).paths["unet"].parent


def _refuse(args: argparse.Namespace, source: str, measure: Measure) -> None:
    """Raises: UserError: options that do not apply, or a model whose pictures are not there to compare with."""
    told = f"{args.model} was trained on {source}"
    if measure is OWN and not (Path(args.model) / "config.yaml").is_file():
        raise UserError(
            f"{told}, pictures that an exported model does not hold: evaluate the run that it was made of, "
            "as in `ldm evaluate runs/NAME/ldm`"
        )
    if measure is OWN and args.against:
        raise UserError(f"--against is for glyph models; {told}: evaluate both runs and compare their metrics.json")
    if measure not in (GLYPHS, OWN) and (args.quick or args.against or args.features or args.clip):
        raise UserError(f"--quick, --against, --clip and --features are not for models of {source}; {told}")
    if args.lora and source == "toy":
        raise UserError(f"--lora is for models of pictures; {told}")
    if args.quick and args.samples is not None:
        raise UserError(f"--quick is --samples {measure.quick}: give one of them")


def _check(args: argparse.Namespace) -> None:
    """Numbers in range, and a folder to write to. Raises: UserError."""
    for name, least in (("samples", 1), ("seed", 0), ("batch", 1)):
        if (value := getattr(args, name)) < least:
            raise UserError(f"--{name} must be {least} or more, got {value}")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output} is not a folder that can be written: {error.strerror}") from None
