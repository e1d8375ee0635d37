"""`ldm evaluate`: does a model generate what the prompt says? What a run was trained on decides what is measured.

Glyphs: prompt adherence, likeness to real glyphs, novelty. Digits: digit and colour. The user's own images: held-out
captions, likeness, near copies. Points: distance from the data distribution.
"""

import argparse
import importlib
from pathlib import Path
from typing import NamedTuple

from ldm.utils.errors import UserError


class Suite(NamedTuple):
    """A benchmark: its module and the function `(run, EvaluationOptions)` in it, and the default of --samples."""

    module: str
    function: str
    samples: int
    quick: int | None = None  # --samples of --quick


# what a run was trained on (data.source); anything else are the user's own images
GLYPHS = Suite("ldm.evaluation.glyphs.report", "evaluate_glyphs", 72, 9)
KNOWN = {
    "": GLYPHS,
    "glyphs": GLYPHS,
    "toy": Suite("ldm.evaluation.toys.report", "evaluate_toy", 20_000),
    "digits": Suite("ldm.evaluation.digits.report", "evaluate_digits", 128),
}
OWN = Suite("ldm.evaluation.images.report", "evaluate_images", 256, 32)
CLIP = Suite("ldm.evaluation.clip_report", "evaluate_clip", 512)  # a run of `ldm train clip`, whatever its data
MAX_CHAIN = 8  # models, each fine-tuned from the next, that are asked for their data


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure how well a model follows its prompts",
        description="Measure a glyph model: prompt adherence on a fixed list of prompts, likeness to real glyphs, "
        "novelty, composition and the autoencoder, each beside chance level and what real glyphs reach. On digits: "
        "digit, colour and style. On your own images (name the run): whether its CLIP recognises the captions, "
        "whether an image follows when one word changes, likeness to held-out images, near copies, the autoencoder. On "
        "points (data.source: toy): distance to fresh data, modes, likelihood. Of a run of `ldm train clip`: whether "
        "images find their captions, and what its text encoder says of unseen prompts. Writes metrics.json, image "
        "grids and, for glyphs, your own images and CLIP, index.html with everything.",
    )
    parser.add_argument(
        "model", nargs="?", help="exported folder, LDM or CLIP run, or Hub id (default: the shipped model)"
    )
    parser.add_argument(
        "--lora",
        metavar="PATH[:SCALE]",
        help="LoRA adapters to add (not to --against): a file, or the run that made it",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report"), help="folder to write (default: report)")
    parser.add_argument(
        "--samples",
        type=int,
        help="images per layout (default: 72; other prompts in proportion), per held-out pair of digit and colour "
        "(128), points per set (20000), or at most so many of your held-out images, one per caption (256)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"glyphs: --samples {GLYPHS.quick}, a few minutes on two cores; own images: {OWN.quick}",
    )
    parser.add_argument(
        "--against", metavar="MODEL", help="glyphs, own images: another model (run), or its report, to compare with"
    )
    parser.add_argument(
        "--clip", type=Path, metavar="RUN", help="glyphs, own images: a run of `ldm train clip` (default: its own)"
    )
    parser.add_argument(
        "--features", metavar="MODEL", help="glyphs, own images: folder of a vision model, such as DINOv2"
    )
    parser.add_argument(
        "--sections",
        nargs="+",
        default=[],
        metavar="NAME",
        help="glyphs: measure adherence to these sections of the prompts alone, such as pair later",
    )
    parser.add_argument("--seed", type=int, default=0, help="image i of every prompt is generated from seed + i")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    parser.add_argument(
        "--interval",
        nargs=2,
        type=float,
        metavar=("FIRST", "LAST"),
        help="guide only at these times, 0 = image to 1 = noise (default: the model's)",
    )
    parser.add_argument("--batch", type=int, default=64, help="images at once: memory, not results (default: 64)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest available)")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), help="rendered glyphs (default: cache)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    source = source_of(_fetched(args.model))
    suite = CLIP if _is_clip_run(args.model) else KNOWN.get(source, OWN)
    _check_applicable(args, source, suite)
    if args.samples is None:
        args.samples = suite.quick if args.quick else suite.samples
    _check_values(args)
    print(f"evaluating {args.model or 'the included model'}, --samples {args.samples}, into {args.output}", flush=True)
    from ldm.evaluation.options import EvaluationOptions
    from ldm.pipelines.component_classes import defer_packages
    from ldm.pipelines.generation import SamplingOptions

    names = ("output", "samples", "seed", "device", "cache_dir", "lora", "against", "clip", "features", "sections")
    sampling = SamplingOptions(args.steps, args.guidance, args.batch, args.interval and tuple(args.interval))
    options = EvaluationOptions(sampling=sampling, **{name: getattr(args, name) for name in names})
    defer_packages()  # of diffusers and transformers a few files are needed
    evaluate = getattr(importlib.import_module(suite.module), suite.function)
    evaluate(args.model if suite is GLYPHS else Path(args.model), options)
    print(f"{args.output / 'metrics.json'}: all numbers")
    return 0


def _is_clip_run(model: str | None) -> bool:
    """Whether it is a run of `ldm train clip` alone."""
    from ldm.utils.untrusted_files import read_yaml

    settings = {} if model is None else read_yaml(Path(model) / "config.yaml")
    return isinstance(settings, dict) and "clip" in settings and not {"ldm", "vae"} & settings.keys()


def source_of(model: str | Path | None) -> str:
    """`data.source` of a run's settings, or the one that an exported model records; "" where there is none.

    A model fine-tuned from a glyph model is one, whatever images it was trained on.
    """
    first = ""
    for _ in range(MAX_CHAIN):
        source, start = ("", None) if model is None else _recorded(model)
        first = first or source
        if source == "glyphs" or not start:
            break
        model = start
    return "glyphs" if source == "glyphs" else first


def _recorded(model: str | Path) -> tuple[str, str | None]:
    """What a model records: its data, and the model that it was fine-tuned from. Nothing is fetched from the Hub."""
    from ldm.utils.assets import model_path
    from ldm.utils.untrusted_files import read_json, read_yaml

    folder = model_path(model)
    if not folder.exists():
        folder = model_path(str(model).removeprefix("models/"))
    settings = read_yaml(folder / "config.yaml")
    if data := _block(settings, "data"):
        source, start = data.get("source"), _block(_block(settings, "ldm"), "start").get("model")
    else:
        facts = read_json(folder / "ldm.json") if (folder / "ldm.json").is_file() else {}
        source, start = (_block(facts, "training").get(name) for name in ("data", "start"))
    return str(source or ""), str(start) if start else None


def _block(settings: dict, name: str) -> dict:
    """A mapping in a mapping, {} where there is none."""
    value = settings.get(name)
    return value if isinstance(value, dict) else {}


def _fetched(model: str | None) -> str | Path | None:
    """The folder of a model on the Hub, fetched; any other as it is. Raises: UserError: there is no such model."""
    from ldm.pipelines.model_folder import resolve_model
    from ldm.utils.assets import shipped_models

    if model is None or Path(model).exists() or model in shipped_models():
        return model
    return resolve_model(model).paths["unet"].parent


def _check_applicable(args: argparse.Namespace, source: str, suite: Suite) -> None:
    """Raises: UserError: options that do not apply, or a model whose images are not there to compare with."""
    trained = f"{args.model} was trained on {source}"
    if suite is OWN and not (Path(args.model) / "config.yaml").is_file():
        raise UserError(
            f"{trained}, images that an exported model does not hold: evaluate the run that it was exported from, "
            "as in `ldm evaluate runs/NAME/ldm`"
        )
    against = [Path(args.against or "") / name for name in ("config.yaml", "scores.npz")]
    if suite is OWN and args.against and not any(file.is_file() for file in against):
        raise UserError(f"--against {args.against} is neither a run of `ldm train ldm` nor a report of one; {trained}")
    if suite is CLIP and (args.quick or args.against or args.features or args.clip or args.lora):
        raise UserError(f"{args.model} is a run of `ldm train clip`: leave out all but --samples, --seed and -o")
    if suite not in (GLYPHS, OWN) and (args.quick or args.against or args.features or args.clip):
        raise UserError(f"--quick, --against, --clip and --features are not for models of {source}; {trained}")
    if args.sections and suite is not GLYPHS:
        raise UserError(f"--sections is for glyph models; {trained}")
    if args.lora and source == "toy":
        raise UserError(f"--lora is for models of images; {trained}")
    if args.quick and args.samples is not None:
        raise UserError(f"--quick is --samples {suite.quick}: give one of them")


def _check_values(args: argparse.Namespace) -> None:
    """Numbers in range, and a folder to write to. Raises: UserError."""
    for name, least in (("samples", 1), ("seed", 0), ("batch", 1)):
        if (value := getattr(args, name)) < least:
            raise UserError(f"--{name} must be {least} or more, got {value}")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output} is not a folder that can be written: {error.strerror}") from None
