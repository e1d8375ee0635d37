"""`ldm evaluate`: does a glyph model draw what the prompt says, readably, and anything of its own?"""

import argparse
import json
from pathlib import Path

from ldm.errors import UserError


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure how well a model obeys its prompts",
        description="Measure a glyph model: obedience to layout and radical prompts, readability, ink, novelty, "
        "and the autoencoder. Writes metrics.json, index.html and contact sheets.",
    )
    parser.add_argument("model", nargs="?", help="exported folder, LDM run or Hub id (default: the shipped model)")
    parser.add_argument("-o", "--output", type=Path, default=Path("report"), help="folder to write (default: report)")
    parser.add_argument("--samples", type=int, default=128, help="pictures for each layout (default: 128)")
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
    for name, least in (("samples", 1), ("radical_samples", 1), ("radicals", 0), ("seed", 0), ("batch", 1)):
        value = getattr(args, name)
        if value < least:
            none = " (--radicals 0 leaves them out)" if name == "radical_samples" else ""
            raise UserError(f"--{name.replace('_', '-')} must be {least} or more, got {value}{none}")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output} is not a folder that can be written: {error.strerror}") from None

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
