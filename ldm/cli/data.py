"""`ldm data`: check your own images before training, caption them, or write and push the glyph data set."""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.common import add_options, check_number
from ldm.data.inspection import inspect, report_lines
from ldm.hub.glyph_dataset import check_target, push, write_repository

if TYPE_CHECKING:
    from ldm.config.settings import DataOptions


def add_parser(subparsers) -> None:
    _add_glyphs(subparsers)
    _add_check(subparsers)
    _add_caption(subparsers)


def _add_glyphs(subparsers) -> None:
    parser = subparsers.add_parser(
        "glyphs",
        help="write or push the glyph data set",
        description="Write the glyph data set, or push it to the Hub, as a `datasets` repository.",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write; new or empty")
    parser.add_argument("--push", metavar="USER/NAME", help="data set repository on the Hub, made where missing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to commit to (default: main)")
    parser.add_argument("--dry-run", action="store_true", help="list what --push would upload, and touch nothing there")
    parser.add_argument("--resolution", type=int, default=64, metavar="N", help="pixels per side (default: 64)")
    parser.add_argument("--styles", nargs="+", choices=("hei", "song"), default=["hei", "song"], metavar="STYLE")
    parser.add_argument("--font-file", type=Path, metavar="FONT", help="your own font instead of the packaged styles")
    parser.add_argument("--characters", choices=("all", "common"), default="all", help="common = GB 2312")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N training characters")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), metavar="DIR", help="of rendered glyphs")
    parser.set_defaults(run=run_glyphs)


def _add_check(subparsers) -> None:
    parser = subparsers.add_parser(
        "check",
        help="check your own data set before training",
        description="List unreadable, duplicate and off-size images, and count captions. Nothing is changed.",
        epilog="Exit code: 0 = every image would be used, 1 = some would be left out, 2 = the data cannot be read.",
    )
    parser.add_argument("path", metavar="PATH", help="folder of images, .parquet file or Hub data set (user/name)")
    parser.add_argument("--config", type=Path, metavar="CONFIG.yaml", help="take resolution, columns, ... from here")
    parser.add_argument("--image-column", metavar="NAME", help="overrides the config's")
    parser.add_argument("--caption-column", metavar="NAME", help="overrides the config's; '' = no captions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the complete report here as well")
    parser.add_argument("--max", type=int, default=10, metavar="N", help="rows of each list on the terminal (10)")
    parser.set_defaults(run=run_check)


def _add_caption(subparsers) -> None:
    parser = subparsers.add_parser(
        "caption",
        help="write captions for your images by an image-to-text model",
        description="Write a .txt with a caption beside each image that has none, by an image-to-text model of "
        "transformers. Files that are there are kept, so the same command resumes after an interruption.",
        epilog="Exit code: 0 = every image has a caption, 1 = some could not be read, 2 = nothing could be done.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of images, with folders in it")
    parser.add_argument("--model", required=True, metavar="ID", help="folder or Hub id (user/name, user/name@revision)")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="beginning of the caption, or a question or task")
    parser.add_argument("--prefix", default="", metavar="TEXT", help="text before each caption")
    parser.add_argument("--trigger", default="", metavar="WORD", help="word before each caption, with a comma after it")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at a time (default: 8)")
    parser.add_argument("--max-tokens", type=int, default=60, metavar="N", help="length of a caption (default: 60)")
    add_options(parser, "device")
    parser.set_defaults(run=run_caption)


def run_caption(args: argparse.Namespace) -> int:
    from ldm.utils.errors import UserError

    check_number("batch_size", args.batch_size, 1)
    check_number("max_tokens", args.max_tokens, 1)
    folder = args.folder.expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give a folder of images")
    from ldm.apps.captioning import Captioner, Wording, caption_folder
    from ldm.cli.train_stage import quiet_libraries

    quiet_libraries()

    wording = Wording(args.prompt, args.prefix, args.trigger, args.max_tokens)
    counts = caption_folder(folder, lambda: Captioner(args.model, args.device), wording, args.batch_size)
    more = {"kept": "had one", "unreadable": "unreadable", "empty": "without an answer"}
    rest = "".join(f", {counts[key]} {words}" for key, words in more.items() if counts[key])
    print(f"{folder}: {counts['written']} captions written{rest}")
    return 1 if counts["unreadable"] or counts["empty"] else 0


def run_check(args: argparse.Namespace) -> int:
    from ldm.formats.sources import open_source
    from ldm.utils.atomic_files import atomic_write
    from ldm.utils.errors import UserError

    report_file = Path(os.path.expanduser(args.json)) if args.json else None
    if report_file and not os.access(report_file.absolute().parent, os.W_OK | os.X_OK):  # reported before the work
        raise UserError(f"cannot write {report_file}: its folder does not exist or may not be written")
    options = _check_options(args)
    source = open_source(options)
    report = inspect(source, options, _text_length(args), chosen=args.config is not None)
    print("\n".join(report_lines(report, max(0, args.max))))
    if report_file:
        try:
            atomic_write(report_file, json.dumps(report, indent=1).encode())
        except OSError as error:
            raise UserError(f"cannot write {report_file}: {error.strerror or error}") from error
    return 1 if report["skipped"] else 0


def _check_options(args: argparse.Namespace) -> "DataOptions":
    from ldm.config.settings import DataOptions
    from ldm.utils.errors import UserError

    options = DataOptions()
    if args.config:
        from ldm.config.loading import load

        options = load("vae", args.config).data
    columns = {"image_column": args.image_column, "caption_column": args.caption_column}
    files = options.files.model_copy(update={key: name for key, name in columns.items() if name is not None})
    if args.path == "glyphs":
        raise UserError(
            "'glyphs' is the built-in data set and needs no check; give a folder, a .parquet file or a Hub id"
        )
    return options.model_copy(update={"source": os.path.expanduser(args.path), "files": files})


def _text_length(args: argparse.Namespace) -> int:
    from ldm.config.loading import load
    from ldm.config.settings import ClipModel

    return (load("clip", args.config).model if args.config else ClipModel()).context_length


def run_glyphs(args: argparse.Namespace) -> int:
    import datasets

    from ldm.data.glyphs.dataset import splits as glyph_splits
    from ldm.utils.errors import UserError
    from ldm.utils.hub_client import files_in, print_plan

    if args.out is None and args.push is None:
        raise UserError("nothing to do: give --out DIR to write the data set, or --push USER/NAME to upload it")
    options = _glyph_options(args)
    if args.out is not None:
        check_target(args.out)
    if args.push is not None:
        _check_repo_id(args.push)
    datasets.disable_progress_bars()
    splits = glyph_splits(options)
    if args.out is not None:
        write_repository(splits, options, args.out)
        print(f"wrote {args.out}: " + ", ".join(f"{name} {len(data)}" for name, data in splits.items()))
    if args.push is not None:
        with tempfile.TemporaryDirectory() as scratch:
            folder = args.out or Path(scratch) / "glyphs"
            if args.out is None:
                write_repository(splits, options, folder)
            if args.dry_run:
                print_plan(files_in(folder), args.push)
            else:
                print(f"pushed {push(folder, args.push, args.private, args.revision)}")
    return 0


def _glyph_options(args: argparse.Namespace) -> "DataOptions":
    from pydantic import ValidationError

    from ldm.config.settings import DataOptions
    from ldm.utils.errors import UserError

    glyphs = {"font_file": args.font_file, "styles": args.styles, "characters": args.characters, "limit": args.limit}
    try:
        return DataOptions(resolution=args.resolution, cache_dir=args.cache_dir, glyphs=glyphs)
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][-1]).replace("_", "-")
        raise UserError(f"--{name}: {fault['msg']}, got {fault['input']!r}") from None


def _check_repo_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from ldm.utils.errors import UserError

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"--push must be USER/NAME, got {repo_id!r}: {error}") from None
