"""What `ldm evaluate` hands to a benchmark suite."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.pipelines.generation import SamplingOptions
from ldm.utils.atomic_files import atomic_write

AGREE, DISAGREE, UNKNOWN = "#1a9850", "#d73027", "#888888"  # borders of images that agree with their prompt, or not


@dataclass(frozen=True)
class EvaluationOptions:
    """Attributes: output, folder to write; samples, see each suite; lora, "PATH[:SCALE]" of adapters; against, another
    model or its report; clip, a run of `ldm train clip`; features, a vision model to compare images by;
    sections, of the prompts of glyph models, to measure these alone.
    """

    output: Path
    samples: int
    seed: int = 0
    sampling: SamplingOptions = SamplingOptions()
    device: str | None = None
    cache_dir: Path = Path("cache")
    lora: str | None = None
    against: str | None = None
    clip: Path | None = None
    features: str | None = None
    sections: tuple[str, ...] = ()


def write_metrics(metrics: dict, folder: Path) -> None:
    """Write metrics.json, which appears only once it is complete."""
    atomic_write(folder / "metrics.json", (json.dumps(metrics, indent=1, ensure_ascii=False) + "\n").encode())


def word_table(rows: Sequence[tuple[str, str]]) -> str:
    """What was measured and what came out, a line for each."""
    width = max(len(what) for what, _ in rows)
    return "\n".join(f"{what:<{width}}  {value}" for what, value in rows)
