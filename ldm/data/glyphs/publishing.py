"""`ldm data glyphs`: the glyph data set as a `datasets` repository: parquet per split, a card and the licences."""

import argparse
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.config.settings import DataOptions
    from ldm.data.glyphs.dataset import GlyphData

NOTICES = ("NOTICE.md", "LICENSE-UNICODE-V3.txt", "LICENSE-APACHE-2.0.txt")
PLACE = "user/name"  # in the card's example
CAPTIONS = 4  # captions written per picture, drawn with the default weights
DESCRIPTION = "Write the glyph data set, or push it to the Hub, as a `datasets` repository."


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("glyphs", help="write or push the glyph data set", description=DESCRIPTION)
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import datasets

    from ldm.data.glyphs.dataset import splits as glyph_splits
    from ldm.utils.errors import UserError
    from ldm.utils.hub_client import files_in, print_plan

    if args.out is None and args.push is None:
        raise UserError("nothing to do: give --out DIR to write the data set, or --push USER/NAME to upload it")
    options = _options(args)
    if args.out is not None:
        _check_target(args.out)
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


def write_repository(splits: dict[str, "GlyphData"], options: "DataOptions", out: Path) -> None:
    """Write parquet files, card and notices to `out`, which appears only when all of it is there.

    Columns: image (PNG), text (list of captions), and what `GlyphData.meta` tells.
    Raises: UserError: `out` is a file or a folder with something in it, or cannot be written.
    """
    from ldm.utils.atomic_files import one_writer, staged, telling

    _check_target(out)
    out = out.absolute()
    with telling(out, "choose another --out, or make room"), one_writer(out), staged(out) as stage:
        (stage / "data").mkdir()
        for name, data in splits.items():
            _table(data).to_parquet(str(stage / "data" / f"{name}-00000-of-00001.parquet"))
        for name in NOTICES:
            source = resources.files("ldm.data").joinpath("assets", name)
            (stage / name).write_bytes(source.read_bytes())
        (stage / "README.md").write_text(card(splits, options), encoding="utf-8")


def push(folder: Path, repo_id: str, private: bool = False, revision: str | None = None) -> str:
    """Upload `folder` as a data set repository, see `hub_client.push`: its parquet files replace those of before."""
    from ldm.utils import hub_client as remote

    return remote.push(
        folder,
        remote.files_in(folder),
        repo_id,
        "Chinese glyphs with captions",
        kind="dataset",
        private=private,
        revision=revision,
        replaces=["data/*.parquet"],
        mark=NOTICES[0],
        place=PLACE,
    )


def card(splits: dict[str, "GlyphData"], options: "DataOptions") -> str:
    """Return the README.md of the repository: YAML heading and an account of content, split, sources and limits."""
    import numpy as np

    from ldm.data.glyphs.captions import RADICALS, STRUCTURES
    from ldm.data.glyphs.dataset import HELD_OUT

    rng = np.random.default_rng(0)
    train = splits["train"]
    shown = [int(i) for i in rng.integers(len(train), size=8)]
    total = sum(map(len, splits.values()))
    structures = [row.structure for data in splits.values() for row, _, _ in data.items]
    fonts = {"hei": "`hei` (Noto Sans SC)", "song": "`song` (Noto Serif SC)", "own": "`own` (a font of the author's)"}
    files = "\n".join(f"  - split: {name}\n    path: data/{name}-*.parquet" for name in splits)
    size = next((text for bound, text in _SIZES if total < bound), "100K<n<1M")
    template = resources.files("ldm.data").joinpath("assets", "card.md").read_text(encoding="utf-8")
    return template.format(
        files=files,
        size=size,
        total=total,
        resolution=options.resolution,
        styles=" and ".join(fonts[style] for style in train.files),
        counts="\n".join(f"| `{name}` | {len(data)} |" for name, data in splits.items()),
        layouts="\n".join(f"| {name} | {structures.count(name)} |" for name in STRUCTURES),
        pairs=", ".join(f"{RADICALS[radical - 1]} ({layout})" for radical, layout in HELD_OUT),
        examples="\n".join(f"- {train.meta(i)['char']}: {train.caption(i, rng)}" for i in shown),
        captions=CAPTIONS,
    )


def _options(args: argparse.Namespace) -> "DataOptions":
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


def _check_target(out: Path) -> None:
    from ldm.utils.errors import UserError

    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"--out must be a new or an empty folder, got {out}; choose another, or remove it first")


def _check_repo_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from ldm.utils.errors import UserError

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"--push must be USER/NAME, got {repo_id!r}: {error}") from None


def _table(data: "GlyphData"):
    """Return the `datasets.Dataset` of one split. Captions depend on the sample's id alone."""
    import datasets
    import numpy as np

    columns: dict[str, list] = {"image": [], "text": []}
    for i, name in enumerate(data.ids):
        rng = np.random.default_rng(list(name.encode()))
        columns["image"].append({"bytes": _png(data.image(i)), "path": None})
        columns["text"].append([data.caption(i, rng) for _ in range(CAPTIONS)])
        for key, value in data.meta(i).items():
            columns.setdefault(key, []).append(value)
    kinds = {str: "string", int: "int32", bool: "bool"}
    features = {key: datasets.Value(kinds[type(column[0])]) for key, column in columns.items() if key not in _SPECIAL}
    special = {"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(special | features))


def _png(pixels) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "png")
    return buffer.getvalue()


_SPECIAL = ("image", "text")
_SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
