"""`ldm runs`: list training runs, verify their checkpoints, delete old ones."""

import argparse
from pathlib import Path
from typing import Any

from ldm.utils.errors import UserError


def add_parser(subparsers) -> None:
    listed = subparsers.add_parser("ls", help="list runs", description="Steps, checkpoints and state of every run.")
    listed.add_argument("folder", nargs="?", default="runs", metavar="DIR", help="where to look (default: runs)")
    listed.set_defaults(run=run_ls)
    verified = subparsers.add_parser(
        "verify",
        help="check checkpoints, caches and images of a run",
        description="Compare sizes and sha256 sums of a run's checkpoints, final model and caches with their "
        "manifests, and its images with what was read before. All files are read, whatever their times.",
        epilog="Exit code: 0 = all valid, 1 = something is damaged.",
    )
    verified.add_argument("run_folder", metavar="RUN")
    verified.set_defaults(run=run_verify)
    pruned = subparsers.add_parser(
        "prune",
        help="delete old checkpoints of a run",
        description="Delete all but the newest valid checkpoints and the best one (train.keep_best), and what killed "
        "processes left behind.",
    )
    pruned.add_argument("run_folder", metavar="RUN")
    pruned.add_argument(
        "--keep", type=int, default=2, metavar="N", help="newest valid checkpoints to keep (default: 2)"
    )
    pruned.add_argument("--dry-run", action="store_true", help="list what would be deleted, and touch nothing")
    pruned.set_defaults(run=run_prune)


def run_ls(args: argparse.Namespace) -> int:
    from ldm.training.run_directory import locked_by
    from ldm.utils import checkpoint_files as checkpoint

    root = Path(args.folder)
    found = sorted({path.parent for name in ("config.yaml", "checkpoints") for path in root.rglob(name)})
    if not found:
        raise UserError(f"{root} holds no runs: name the folder where train_*.py wrote them")
    rows = [("run", "checkpoints", "newest", "final", "size", "in use")]
    for run in found:
        steps = checkpoint.saved(run / "checkpoints")
        final = "-" if not (run / "final").exists() else checkpoint.verify(run / "final") or "whole"
        newest = steps[-1].name.removeprefix("step-").lstrip("0") if steps else "-"
        rows.append((str(run), str(len(steps)), newest, final, _size(run), locked_by(run) or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from ldm.utils import checkpoint_files as checkpoint

    run = _run(args.run_folder)
    final = [run / "final"] if (run / "final").exists() else []
    faults: dict[Any, str | None] = {
        path: checkpoint.verify(path) for path in checkpoint.saved(run / "checkpoints") + final
    }
    faults |= _data_faults(run)
    for path, fault in faults.items():
        print(f"{path}: {fault or 'whole'}")
    return 1 if any(faults.values()) else 0


def _data_faults(run: Path) -> dict[Any, str | None]:
    """What is wrong with the images and the caches of a run, None if nothing; {} if it has no config.yaml."""
    import yaml

    from ldm.config.settings import DataOptions
    from ldm.data import is_own
    from ldm.formats.shards import is_pattern

    try:
        document = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        options = DataOptions.model_validate(document["data"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        why = type(error).__name__
        return {run / "config.yaml": f"cannot be read ({why}), so images and caches were not checked"}
    faults: dict[Any, str | None] = {}
    if not is_own(options.source) and not is_pattern(options.source):
        from ldm.data.image_files.pixel_cache import check_files

        try:
            faults |= check_files(options)
        except UserError as error:
            faults[options.source] = str(error)
    if not options.cache_dir.is_dir():
        return faults
    from ldm.training.latent_cache import check_latents

    return faults | check_latents(options.cache_dir)


def run_prune(args: argparse.Namespace) -> int:
    from ldm.training.run_directory import locked_by
    from ldm.training.validation import best_name
    from ldm.utils import checkpoint_files as checkpoint
    from ldm.utils.atomic_files import remove_stale

    run = _run(args.run_folder)
    if args.keep < 1:
        raise UserError(f"--keep must be at least 1, got {args.keep}")
    if owner := locked_by(run):
        raise UserError(f"{run} is in use by {owner}: prune it afterwards, or lower train.keep_checkpoints")
    folder = run / "checkpoints"
    whole = [path for path in checkpoint.saved(folder) if checkpoint.verify(path) is None]
    kept = [*whole[-args.keep :], *(path for path in whole if path.name == best_name(whole[-1]))]
    old = [path for path in checkpoint.saved(folder) + checkpoint.set_aside(folder) if path not in kept]
    if not whole and old:
        raise UserError(
            f"{run} has no whole checkpoint: nothing is deleted; `ldm runs verify {run}` says what is wrong"
        )
    for path in old:
        print(f"{'would delete' if args.dry_run else 'deleted'} {path} ({_size(path)})")
    if not args.dry_run:
        checkpoint.delete(old)
        remove_stale(folder)
    return 0


def _run(name: str) -> Path:
    run = Path(name)
    if not (run / "checkpoints").is_dir():
        raise UserError(f"{run} is no run: it has no checkpoints/; `ldm runs ls` lists those below runs/")
    return run


def _size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 2**20:.1f} MiB"
