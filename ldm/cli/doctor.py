"""`ldm doctor`: check this machine and installation, or a run from its data to its images."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from ldm.evaluation.diagnostics.environment import findings
from ldm.evaluation.diagnostics.findings import Finding, format_line, verdict


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="check this machine, or why a run generates noise",
        description="Check this machine and this installation; or, given a run, the chain from its data to its images, "
        "in order. The first check that fails names the cause, and the setting to change. Exit code 0 if "
        "nothing fails, else 1.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="RUN",
        help="a run of `ldm train ldm`, finished or not, such as runs/glyphs/ldm, one of its checkpoints, a finished "
        "run of `ldm train vae` or `ldm train clip`, or an exported model, of which what needs no data is checked",
    )
    parser.add_argument("--limit", type=_count, default=64, help="items of each split to measure on (default: 64)")
    parser.add_argument("--device", help="for a run: cpu, cuda, ... (default: the fastest there is)")
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")


def run(args: argparse.Namespace) -> int:
    found = findings() if args.folder is None else _examined(args)
    if args.json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    elif args.folder is None:
        print("\n".join(format_line(finding) for finding in found))
    else:
        print(verdict(found))
    return int(any(finding.status == "fail" for finding in found))


def _examined(args: argparse.Namespace) -> list[Finding]:
    """The findings about a run; each is printed as soon as it is there, unless they are to be JSON."""
    from ldm.evaluation.diagnostics.run import examine

    found = []
    for finding in examine(args.folder, args.limit, args.device):
        found.append(finding)
        if not args.json:
            print(format_line(finding), flush=True)
    return found


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 8:
        raise argparse.ArgumentTypeError(f"must be a whole number, 8 or more, got {text!r}")
    return int(text)
