"""`ldm export` and `ldm push`: the way of a model from its run to a folder, and from the folder to the Hub."""

import argparse
import os
import re
from pathlib import Path

from ldm.errors import UserError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
PATTERNS = ["*.json", "*.safetensors", "*.onnx", "*.txt", "README.md", "*.png", "*.jpg"]


def add_parser(subparsers) -> None:
    export = subparsers.add_parser(
        "export",
        help="turn a run into one self-contained model folder",
        description="Write the model of a finished LDM run as one folder that stock diffusers loads.",
    )
    export.add_argument("source", metavar="RUN", help="folder of an LDM run (or an exported model, to convert it)")
    export.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write")
    export.add_argument("--dtype", default="fp32", choices=["fp32", "fp16"], help="of the stored weights")
    export.add_argument("--name", help="of the model, in its card (default: the folder's name)")
    export.add_argument("--metrics", metavar="FILE", help="metrics.json of `ldm evaluate`, for the card")
    export.set_defaults(run=run_export)

    push = subparsers.add_parser(
        "push",
        help="upload a model folder with its card to the Hub",
        description="Upload an exported folder as one commit. The token comes from `hf auth login` or HF_TOKEN.",
    )
    push.add_argument("folder", metavar="DIR", help="exported model")
    push.add_argument("repo_id", metavar="USER/NAME", help="repository on the Hub; made if it does not exist")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--revision", help="branch to commit to (default: main)")
    push.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and touch nothing")
    push.set_defaults(run=run_push)


def run_export(args: argparse.Namespace) -> int:
    from ldm.export import export

    metrics = Path(args.metrics) if args.metrics else None
    out = export(args.source, Path(os.path.expanduser(args.output)), args.dtype, args.name, metrics)
    size = sum(file.stat().st_size for file in files(out))
    print(f"{out}: {len(files(out))} files, {size / 2**20:.1f} MiB. Next: ldm generate -m {out} 'a prompt'")
    return 0


def run_push(args: argparse.Namespace) -> int:
    folder = Path(args.folder)
    if not HUB_NAME.fullmatch(args.repo_id):
        raise UserError(f"the repository must be USER/NAME, got {args.repo_id!r}")
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{folder} is no exported model (no model_index.json): run `ldm export RUN -o DIR` first")
    chosen = files(folder)
    if args.dry_run:
        for file in chosen:
            print(f"{file.stat().st_size:>12,}  {file.relative_to(folder).as_posix()}")
        total = sum(file.stat().st_size for file in chosen)
        print(f"{total:>12,}  in {len(chosen)} files would go to {args.repo_id} as one commit")
        return 0
    print(push(folder, args.repo_id, args.private, args.revision))
    return 0


def push(folder: Path, repo_id: str, private: bool = False, revision: str | None = None) -> str:
    """Upload an exported folder, see `ldm.remote.push`: the files of its components replace those of an earlier one."""
    from ldm import remote
    from ldm.model_folder import COMPONENTS

    return remote.push(
        folder,
        files(folder),
        repo_id,
        "Upload model",
        private=private,
        revision=revision,
        replaces=[f"{name}/*" for name in COMPONENTS],
        mark="ldm.json",
    )


def files(folder: Path) -> list[Path]:
    """What belongs to the model, sorted: known kinds only, nothing hidden, nothing through links out of the folder."""
    found = {path for pattern in PATTERNS for path in folder.rglob(pattern)}
    root = folder.resolve()
    inside = (path for path in found if path.is_file() and path.resolve().is_relative_to(root))
    return sorted(path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts))
