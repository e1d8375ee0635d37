"""`ldm likelihood`: how probable held-out data are under a finished run, and which times cost how much of it."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "likelihood",
        help="measure how probable held-out data are under a run",
        description="The variational bound on -ln p of held-out data, step by step, and the exact value by the ODE.",
        epilog="Points: nats per point. Images: bits per dimension. Lower is better.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="RUN", help="a finished run of `ldm train ldm`, such as runs/toy-swiss-roll/ldm"
    )
    parser.add_argument("--limit", type=_count, default=256, help="test items to measure (default: 256)")
    parser.add_argument("--steps", type=_count, help="of the chain (default: 1000 for points, 100 for images)")
    parser.add_argument("--exact", action="store_true", help="also the exact value, by the probability-flow ODE")
    parser.add_argument("--ode-steps", type=_count, help="of the ODE (default: 100 for points, 40 for images)")
    parser.add_argument(
        "--variance",
        choices=("small", "large", "learned", "optimal"),
        help="of the reverse steps (default: learned where it is, else optimal)",
    )
    parser.add_argument("--unconditional", action="store_true", help="do not condition on captions")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the fastest available)")
    parser.add_argument("-o", "--output", type=Path, help="also write the numbers here, as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ldm.evaluation.likelihood import Plan, likelihood_of_run

    plan = Plan(args.limit, args.steps, args.ode_steps, args.variance, args.exact, not args.unconditional, args.seed)
    found = likelihood_of_run(args.folder, plan, args.device)
    print(table(found))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def table(found: dict[str, Any]) -> str:
    """The numbers as lines of text."""
    item = "point" if found["space"] == "points" else "image"
    captions = "with their captions" if found["captions"] else "without captions"
    lines = [
        f"{found['items']} {item}s of {found['dims']} numbers, {captions}; "
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
