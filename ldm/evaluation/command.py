"""`ldm evaluate`: does a model draw what the prompt says?

Glyphs: what was asked for, as well as real ones, and anything of its own? Digits: the digit and the colour? Points: how
far are they from the density they should have? What a run was trained on decides which.
"""

import argparse
import importlib
from pathlib import Path

from ldm.errors import UserError

# what a run was trained on (data.source) -> the module with its `evaluate(run, args)`, and what --samples is there
OTHERS = {"toy": ("ldm.evaluation.toys", 20_000), "digits": ("ldm.evaluation.digits", 128)}
GLYPHS = ("ldm.evaluation.report", 72)
QUICK = 9  # samples of glyphs


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure how well a model obeys its prompts",
        description="Measure a glyph model: obedience to a fixed list of prompts, likeness to real glyphs, novelty, "
        "composition, and the autoencoder, each beside its floor and ceiling. On digits: digit, colour and style. On "
        "points (data.source: toy): distance to fresh data, modes, likelihood. Writes metrics.json, of glyphs "
        "index.html with everything in it, of pictures contact sheets.",
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
        "colour (128), or points (20000)",
    )
    parser.add_argument("--quick", action="store_true", help=f"glyphs: --samples {QUICK}, a few minutes on two cores")
    parser.add_argument(
        "--against", metavar="MODEL", help="glyphs: another model, or the report of one, to compare this one with"
    )
    parser.add_argument(
        "--clip", type=Path, metavar="RUN", help="glyphs: a run of train_clip.py for the CLIP score (default: its own)"
    )
    parser.add_argument(
        "--features", metavar="MODEL", help="glyphs: folder of a vision model (DINOv2, say) to measure distances by"
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
    source = source_of(args.model)
    module, samples = OTHERS.get(source, GLYPHS)
    if source in OTHERS and (args.quick or args.against or args.features or args.clip):
        raise UserError(
            f"--quick, --against, --clip and --features are for glyph models; {args.model} was trained on {source}"
        )
    if args.lora and source == "toy":
        raise UserError(f"--lora is for models of pictures; {args.model} was trained on {source}")
    if args.quick and args.samples is not None:
        raise UserError(f"--quick is --samples {QUICK}: give one of them")
    if args.samples is None:
        args.samples = QUICK if args.quick else samples
    _check(args)
    importlib.import_module(module).evaluate(Path(args.model) if source in OTHERS else args.model, args)
    print(f"{args.output / 'metrics.json'}: everything")
    return 0


def source_of(model: str | Path | None) -> str:
    """`data.source` of a run's settings; "" for what is no run."""
    if model is None:
        return ""
    from ldm.model_folder import read_yaml

    data = read_yaml(Path(model) / "config.yaml").get("data")
    return str(data.get("source", "")) if isinstance(data, dict) else ""


def _check(args: argparse.Namespace) -> None:
    """Numbers in range, and a folder to write to. Raises: UserError."""
    for name, least in (("samples", 1), ("seed", 0), ("batch", 1)):
        if (value := getattr(args, name)) < least:
            raise UserError(f"--{name} must be {least} or more, got {value}")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output} is not a folder that can be written: {error.strerror}") from None
