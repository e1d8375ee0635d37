"""`ldm evaluate`: does a model draw what the prompt says?

Glyphs: the layout and radical asked for, readably, and anything of its own? Digits: the digit and the colour? Points:
how far are they from the density they should have? What a run was trained on decides which.
"""

import argparse
import importlib
import json
from pathlib import Path

from ldm.errors import UserError

# what a run was trained on (data.source) -> the module with its `evaluate(run, args)`, and what --samples is there
OTHERS = {"toy": ("ldm.evaluation.toys", 20_000), "digits": ("ldm.evaluation.digits", 128)}
SAMPLES = 128  # of glyphs


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure how well a model obeys its prompts",
        description="Measure a glyph model: obedience to layout and radical prompts, readability, ink, novelty, "
        "and the autoencoder. On digits: digit, colour and style. On points (data.source: toy): "
        "distance to fresh data, modes, likelihood. Writes metrics.json, of pictures also contact sheets.",
    )
    parser.add_argument("model", nargs="?", help="exported folder, LDM run or Hub id (default: the shipped model)")
    parser.add_argument("-o", "--output", type=Path, default=Path("report"), help="folder to write (default: report)")
    parser.add_argument(
        "--samples",
        type=int,
        help="pictures for each layout or held-out pair of digit and colour (default: 128), or points (default: 20000)",
    )
    parser.add_argument("--radical-samples", type=int, default=32, help="pictures for each radical (default: 32)")
    parser.add_argument("--radicals", type=int, default=36, help="how many radicals, commonest first (default: 36)")
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
    module, samples = OTHERS.get(source_of(args.model), ("", SAMPLES))
    args.samples = samples if args.samples is None else args.samples
    _check(args)
    if not module:
        return _glyphs(args)
    importlib.import_module(module).evaluate(Path(args.model), args)
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
    for name, least in (("samples", 1), ("radical_samples", 1), ("radicals", 0), ("seed", 0), ("batch", 1)):
        value = getattr(args, name)
        if value < least:
            none = " (--radicals 0 leaves them out)" if name == "radical_samples" else ""
            raise UserError(f"--{name.replace('_', '-')} must be {least} or more, got {value}{none}")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output} is not a folder that can be written: {error.strerror}") from None


def _glyphs(args: argparse.Namespace) -> int:
    from ldm.config import DataOptions
    from ldm.evaluation.report import Plan, evaluate
    from ldm.pipeline import load_pipeline

    names = ("samples", "radical_samples", "radicals", "seed", "steps", "guidance", "batch")
    plan = Plan(**{name: getattr(args, name) for name in names})
    data = DataOptions(cache_dir=args.cache_dir)
    metrics = evaluate(load_pipeline(args.model, device=args.device), plan, args.output, data)
    print(json.dumps(metrics["summary"], indent=1))
    print(f"{args.output / 'index.html'}: numbers and pictures; {args.output / 'metrics.json'}: everything")
    return 0
