"""`ldm export`, `ldm card` and `ldm push`: a run as one model folder, its card, and its upload to the Hub."""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm.hub.push import check_name, files, push
from ldm.utils.errors import UserError


def add_parser(subparsers) -> None:
    export = subparsers.add_parser(
        "export",
        help="turn a run into one self-contained model folder",
        description="Write the model of a finished LDM run as one folder that plain diffusers loads, with its card.",
    )
    export.add_argument("source", metavar="RUN", help="folder of an LDM run (or an exported model, to convert it)")
    export.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write")
    _add_export_options(export, "the folder's name")
    export.set_defaults(run=run_export)

    card = subparsers.add_parser(
        "card",
        help="write the card of an exported model again",
        description="Write README.md of an exported model again, from what lies in its folder, and images where it has "
        "none. The weights stay as they are.",
    )
    card.add_argument("source", metavar="DIR", help="folder of an exported model")
    card.add_argument("--metrics", metavar="FILE", help="metrics.json of `ldm evaluate`, for the card")
    card.add_argument("--prompt", nargs="+", help="of the card's images, which are then generated again")
    card.add_argument("--license", metavar="ID", help="of the weights, as the Hub names it, such as cc-by-4.0")
    card.add_argument("--data", metavar="TEXT", help="what the model was trained on, in a sentence or two")
    card.set_defaults(run=run_card)

    push = subparsers.add_parser(
        "push",
        help="upload a model with its card to the Hub",
        description="Export a run, or take an exported folder as it is, and upload it as one commit.",
        epilog="The token comes from `hf auth login` or HF_TOKEN.",
    )
    push.add_argument("source", metavar="RUN", help="folder of an LDM run, or an exported model")
    push.add_argument("repo_id", metavar="USER/NAME", help="repository on the Hub; made if it does not exist")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--revision", help="branch to commit to (default: main)")
    push.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and touch nothing")
    _add_export_options(push, "USER/NAME's second half")
    push.set_defaults(run=run_push)


def _add_export_options(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--dtype", choices=["fp32", "fp16", "both"], help="of the stored weights (default: fp32)")
    parser.add_argument("--name", help=f"of the model, in its card (default: {name})")
    parser.add_argument("--metrics", metavar="FILE", help="metrics.json of `ldm evaluate`, for the card")
    parser.add_argument("--prompt", nargs="+", help="of the card's images (default: those of the run's sample grids)")
    parser.add_argument("--license", metavar="ID", help="of the weights, as the Hub names it, such as cc-by-4.0")


def run_export(args: argparse.Namespace) -> int:
    out = _export(args, Path(os.path.expanduser(args.output)))
    found = files(out).values()
    size = sum(file.stat().st_size for file in found)
    print(f"{out}: {len(found)} files, {size / 2**20:.1f} MiB. Next: ldm generate -m {out} 'a prompt'")
    return 0


def run_card(args: argparse.Namespace) -> int:
    from ldm.hub.export import renew_card

    folder = Path(args.source).expanduser()
    renew_card(folder, Path(args.metrics) if args.metrics else None, args.prompt or (), args.license, args.data)
    print(folder / "README.md")
    return 0


def run_push(args: argparse.Namespace) -> int:
    check_name(args.repo_id)
    with _exported(args) as folder:
        if args.dry_run:
            from ldm.utils.hub_client import print_plan

            print_plan(files(folder), args.repo_id)
        else:
            print(push(folder, args.repo_id, args.private, args.revision))
    return 0


@contextmanager
def _exported(args: argparse.Namespace) -> Iterator[Path]:
    """The folder to upload: the one named, or one that is exported for the while."""
    folder = Path(args.source).expanduser()
    options = ("dtype", "name", "metrics", "prompt", "license")
    if (folder / "model_index.json").is_file():
        if given := [name for name in options if getattr(args, name) is not None]:
            raise UserError(
                f"{folder} is exported already, and --{given[0]} is a choice of exporting: "
                f"`ldm export {folder} -o {folder} --{given[0]} ...` makes it again, then push"
            )
        yield folder
        return
    if not (folder / "final").is_dir():
        raise UserError(
            f"{folder} is neither an exported model (no model_index.json) nor a finished LDM run (no final/): "
            "finish the training first"
        )
    with tempfile.TemporaryDirectory() as scratch:
        yield _export(args, Path(scratch) / args.repo_id.split("/")[1])


def _export(args: argparse.Namespace, out: Path) -> Path:
    from ldm.hub.export import export

    metrics = Path(args.metrics) if args.metrics else None
    return export(args.source, out, args.dtype or "fp32", args.name, metrics, args.prompt or (), args.license)
