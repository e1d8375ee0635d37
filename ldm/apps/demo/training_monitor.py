"""What a training writes into its folder, for the demo's page: curves, sample grids, ETA."""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ldm.evaluation.html import curves
from ldm.training.run_directory import locked_by
from ldm.utils.errors import UserError
from ldm.utils.untrusted_files import read_yaml

MAX_RUNS = 200
MAX_POINTS = 400  # of a curve
TAIL = 8 * 2**20  # bytes of a log that are read, from its end
GRIDS = 4  # newest sample grids shown
MARGIN = 1.5  # the losses of the first steps may lie far above the rest; so far above it they are cut off
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Watched:
    text: str  # one line: where it is, how fast, how long still
    curves: list[str]  # SVGs
    grids: list[tuple[Image.Image, str]]  # newest first, each with its name


def runs_in(root: Path | None) -> list[str]:
    """Folders below `root` with a log, as paths relative to it, the last written first."""
    if root is None:
        return []
    logs = [path for path in root.rglob("log.jsonl") if path.is_file()]
    newest = sorted(logs, key=lambda path: -path.stat().st_mtime)
    return [path.parent.relative_to(root).as_posix() for path in newest[:MAX_RUNS]]


def watch(root: Path | None, name: str) -> Watched:
    """The state of the run `name`. Raises: UserError unless it is one of `runs_in`."""
    if root is None or name not in runs_in(root):
        raise UserError("there is no such run: choose one of the list")
    run = root / name
    lines = read_log(run / "log.jsonl")
    return Watched(_line(run, lines), _curves(lines), _grids(run / "samples"))


def read_log(path: Path) -> list[dict]:
    """The entries of a log.jsonl, oldest first; of a very long one the last. Half a line is left out."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        rows = file.read().splitlines()
    return [entry for row in rows if (entry := _entry(row)) is not None]


def _entry(row: bytes) -> dict | None:
    try:
        entry = json.loads(row)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


def series(lines: list[dict], name: str) -> Curve:
    """(step, value) of one number, thinned to `MAX_POINTS`; of a step that was taken twice the later counts."""
    found = {entry["step"]: entry[name] for entry in lines if isinstance(entry.get(name), int | float)}
    points = sorted(found.items())
    stride = -(-len(points) // MAX_POINTS) or 1
    return points[::-1][::stride][::-1]


def _line(run: Path, lines: list[dict]) -> str:
    settings = read_yaml(run / "config.yaml").get("train", {})
    steps, batch = settings.get("num_steps"), settings.get("batch_size")
    last = max((entry["step"] for entry in lines), default=0)
    speed = next((entry["images_per_second"] for entry in reversed(lines) if entry.get("images_per_second")), None)
    parts = [f"step {last:,}" + (f" of {steps:,}" if steps else "")]
    if speed:
        parts.append(f"{speed:,.0f} images/s")
    if (run / "final").is_dir():
        parts.append("finished")
    elif owner := locked_by(run):
        left = (steps - last) * batch / speed / 60 if speed and steps and batch else None
        parts.append(f"in training by {owner}" + (f", about {left:,.1f} min to go" if left is not None else ""))
    else:
        parts.append("nobody is training it at the moment; --resume auto goes on")
    return ", ".join(parts)


def _curves(lines: list[dict]) -> list[str]:
    """Losses; what the judge says; whatever else the validation measures."""
    names = {name for entry in lines for name in entry}
    losses = [name for name in ("loss", "raw/loss", "ema/loss") if name in names]
    judged = sorted(name for name in names if "judged/" in name)
    rest = [name for name in ("ema/psnr", "ema/text_to_image_recall@1", "ema/text_to_image_recall@10") if name in names]
    drawn = []
    for group, label in ((losses, "loss"), (judged, "share"), (rest, "")):
        lines_of = {name: points for name in group if (points := series(lines, name))}
        if lines_of:
            drawn.append(curves(_cut(lines_of) if group is losses else lines_of, "step", label))
    return drawn


def _cut(lines: dict[str, Curve]) -> dict[str, Curve]:
    """Curves with what lies far above all of their later half cut off, so that the later half can be read."""
    later = [value for line in lines.values() for _, value in line[len(line) // 2 :]]
    ceiling = max(later) + MARGIN * (max(later) - min(later) or 1)
    return {name: [(step, min(value, ceiling)) for step, value in line] for name, line in lines.items()}


def _grids(folder: Path) -> list[tuple[Image.Image, str]]:
    """The newest sample grids; those of the averaged weights where there are two. One that is half written waits."""
    paths = sorted(folder.glob("*.png"))
    averaged = [path for path in paths if path.stem.endswith("-ema")]
    found = []
    for path in reversed((averaged or paths)[-GRIDS:]):
        try:
            with Image.open(path) as image:
                found.append((image.convert("RGB"), path.stem))
        except (OSError, SyntaxError, ValueError):
            continue
    return found
