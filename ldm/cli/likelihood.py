"""`ldm likelihood`: how probable held-out data are under a finished run, and where along the way it is lost."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "likelihood",
        help="measure how probable held-out data are under a run",
        description="The variational bound on -ln p of held-out data, step by step, and the exact value by the ODE.",
        epilog="Points: nats per point. Pictures: bits per dimension. Smaller is better.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="RUN", help="a finished run of train_ldm.py, such as runs/toy-swiss-roll/ldm"
    )
    parser.add_argument("--limit", type=_count, default=256, help="test items to measure (default: 256)")
    parser.add_argument("--steps", type=_count, help="of the chain (default: 1000 for points, 100 for pictures)")
    parser.add_argument("--exact", action="store_true", help="also the exact value, by the probability-flow ODE")
    parser.add_argument("--ode-steps", type=_count, help="of the ODE (default: 100 for points, 40 for pictures)")
    parser.add_argument(
        "--variance",
        choices=("small", "large", "learned", "optimal"),
        help="of the reverse steps (default: the best known)",
    )
    parser.add_argument("--unconditional", action="store_true", help="tell the model no captions")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest there is)")
    parser.add_argument("-o", "--output", type=Path, help="also write the numbers here, as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ldm.evaluation.likelihood import Plan, evaluate

    plan = Plan(args.limit, args.steps, args.ode_steps, args.variance, args.exact, not args.unconditional, args.seed)
    found = evaluate(args.folder, plan, args.device)
    print(table(found))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def table(found: dict[str, Any]) -> str:
    """The numbers as lines of text."""
    item = "point" if found["space"] == "points" else "picture"
    told = "told its caption" if found["captions"] else "told nothing"
    lines = [
        f"{found['items']} {item}s of {found['dims']} numbers, each {told}; "
        f"{found['steps']} steps in {found['space']}, {found['variance']} variance"
    ]
    lines += [f"  {_stretch(term):<16}{term['what']:<18}{term['nats']:>12.4f} nats" for term in found["terms"]]
    names = {"bound": "-ln p(x) is at most", "exact": "-ln p(x) by the ODE", "truth": "under the true density"}
    for key, name in names.items():
        if isinstance(value := found.get(key), float):
            lines.append(f"{name:<34}{value:>14.4f} nats per {item}")
        elif value is not None:
            lines.append(f"{name:<34}{value['nats']:>14.4f} nats per {item} (+- {value['standard_error']:.4f})")
            if "bits_per_dim" in value:
                bits, error = value["bits_per_dim"], value["bits_standard_error"]
                lines.append(f"{'':<34}{bits:>14.4f} bits per dimension (+- {error:.4f})")
    return "\n".join(lines)


def _stretch(term: dict[str, Any]) -> str:
    return f"{term['from']:.3f} .. {term['to']:.3f}" if "from" in term else ""


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, got {text!r}")
    return int(text)
