"""Is one model better than another? Both drew the same prompts from the same seeds: picture against picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ldm.evaluation.glyphs.adherence import MEASURES
from ldm.evaluation.metrics.confidence import paired
from ldm.utils.atomic_files import write_whole
from ldm.utils.errors import UserError

SCORES = "scores.npz"
Scores = dict[str, dict[str, np.ndarray]]  # section -> measure -> (n,), nan where it is not asked for


def compare(a: Scores, b: Scores, prompts: dict[str, np.ndarray]) -> dict[str, dict[str, dict]]:
    """Section -> measure -> both means, the difference B - A with its interval, and the verdict.

    Args:
        prompts: of each section the number of each picture's prompt; described characters are drawn anew as wholes.
    """
    found: dict[str, dict[str, dict]] = {}
    for section, measures in b.items():
        for name, values in measures.items():
            known = np.isfinite(values)
            if not known.any():
                continue
            clusters = prompts[section][known] if section == "character" else None
            one, other = a[section][name][known], values[known]
            found.setdefault(section, {})[name] = paired(
                one, other, clusters, higher_is_better=MEASURES.get(name, True)
            ).rounded()
    return found


def save_scores(scores: Scores, report: Path) -> None:
    """Keep the score of every picture beside the metrics, for a later comparison."""
    import io

    buffer = io.BytesIO()
    flat: dict[str, Any] = {f"{s}/{m}": v.astype(np.float32) for s, of in scores.items() for m, v in of.items()}
    np.savez_compressed(buffer, **flat)
    write_whole(report / SCORES, buffer.getvalue())


def load_scores(report: Path, plan: dict) -> tuple[Scores, dict]:
    """The scores and metrics of an earlier report. Raises: UserError: none there, or it was drawn by another plan."""
    try:
        metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
        with np.load(report / SCORES, allow_pickle=False) as kept:
            flat = {name: kept[name].astype(np.float64) for name in kept.files}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{report} is no report of `ldm evaluate` that can be compared with: {error}") from None
    if metrics.get("plan") != plan:
        raise UserError(
            f"the report in {report} was drawn by another plan ({_differing(metrics.get('plan'), plan)}): pictures can "
            "only be compared with pictures of the same prompts and seeds; give the same options, or name the model"
        )
    scores: Scores = {}
    for name, values in flat.items():
        section, measure = name.split("/", 1)
        scores.setdefault(section, {})[measure] = values
    return scores, metrics


def _differing(kept: object, plan: dict) -> str:
    kept = kept if isinstance(kept, dict) else {}
    other = [name for name in plan if kept.get(name) != plan[name]]
    return ", ".join(f"{name}: {kept.get(name)} there, {plan[name]} here" for name in other)
