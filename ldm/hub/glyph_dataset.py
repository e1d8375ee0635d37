"""The glyph data set as a `datasets` repository: parquet per split, a card and the licences."""

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.config.settings import DataOptions
    from ldm.data.glyphs.dataset import GlyphData

NOTICES = ("NOTICE.md", "LICENSE-UNICODE-V3.txt", "LICENSE-APACHE-2.0.txt")
PLACE = "user/name"  # in the card's example
CAPTIONS = 4  # captions written per picture, drawn with the default weights


def write_repository(splits: dict[str, "GlyphData"], options: "DataOptions", out: Path) -> None:
    """Write parquet files, card and notices to `out`, which appears only when all of it is there.

    Columns: image (PNG), text (list of captions), and what `GlyphData.meta` tells.
    Raises: UserError: `out` is a file or a folder with something in it, or cannot be written.
    """
    from ldm.utils.atomic_files import exclusive_lock, readable_io_errors, staged

    check_target(out)
    out = out.absolute()
    with readable_io_errors(out, "choose another --out, or make room"), exclusive_lock(out), staged(out) as stage:
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
    from ldm.data.glyphs.heldout import HELD_OUT

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


def check_target(out: Path) -> None:
    from ldm.utils.errors import UserError

    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"--out must be a new or an empty folder, got {out}; choose another, or remove it first")


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
