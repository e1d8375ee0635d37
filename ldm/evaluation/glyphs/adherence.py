"""Adherence: how far pictures of glyphs agree with what was asked for, picture by picture.

Every measure is an array with one number for each picture, `nan` where the prompt does not ask for it. Two more numbers
make a mean of it mean something: the **ceiling**, the same measure of real characters that neither the model nor the
judge was trained on, and the **floor**, of the same pictures when the prompts are dealt out anew among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldm.data.glyphs.dataset import GlyphData
from ldm.evaluation.glyphs.classifier import GlyphClassifier, Judgement
from ldm.evaluation.glyphs.prompts import Asked
from ldm.evaluation.glyphs.style_probe import StyleProbe

Scores = dict[str, np.ndarray]  # measure -> float64 (n,)
# name -> whether more is better; all are shares of 1 but for strokes, which are counted
MEASURES = {"layout": True, "radical": True, "components_f1": True, "strokes_error": False, "style": True}


@dataclass(frozen=True)
class Judged:
    """What the judges say of n pictures."""

    judgement: Judgement
    styles: np.ndarray  # str (n,), a key of STYLE_PHRASES


class Judge:
    """The glyph classifier and the style probe."""

    def __init__(self, classifier: GlyphClassifier, probe: StyleProbe):
        self.classifier, self.probe = classifier, probe

    def __call__(self, images: np.ndarray) -> Judged:
        """Of glyphs uint8 (n, h, w), dark on white."""
        return Judged(self.classifier.judge(images), self.probe(images))

    def scores(self, judged: Judged, asked: Sequence[Asked]) -> Scores:
        """Each of MEASURES as float64 (n,), nan where it is not asked for or cannot be judged."""
        found = judged.judgement
        classes = [self.classifier.layout_class(one.layout) if one.layout else None for one in asked]
        strokes = np.array([one.strokes or np.nan for one in asked])
        return {
            "layout": _right(found.layouts, classes),
            "radical": _right(found.radicals.tolist(), [one.radical or None for one in asked]),
            "components_f1": self._components(found, asked),
            "strokes_error": np.abs(found.strokes - strokes),
            "style": _right(judged.styles.tolist(), [one.style or None for one in asked]),
        }

    def _components(self, found: Judgement, asked: Sequence[Asked]) -> np.ndarray:
        """F1 of the components seen against those of the character described: 2 |both| / (|seen| + |there|)."""
        known = np.array([bool(one.codepoint) for one in asked])
        there = np.zeros((len(asked), len(self.classifier.components)), bool)
        there[known] = self.classifier.component_labels([one.codepoint for one in asked if one.codepoint])
        seen = self.classifier.present(found)
        f1 = 2 * (seen & there).sum(1) / np.maximum(seen.sum(1) + there.sum(1), 1)
        return np.where(there.any(1), f1, np.nan)


def _right(seen: Sequence, wanted: Sequence) -> np.ndarray:
    return np.array([np.nan if w is None else float(s == w) for s, w in zip(seen, wanted, strict=True)])


def asked_of(data: GlyphData) -> list[Asked]:
    """What a perfect caption of each glyph of a split would say."""
    rows = (data.meta(i) for i in range(len(data)))
    return [
        Asked(
            "character", "", layout=r["structure"], radical=r["radical"], style=r["style"], strokes=r["strokes"],
            codepoint=ord(r["char"]),
        )
        for r in rows
    ]  # fmt: skip


def ceiling(asked: Sequence[Asked], real: Sequence[Asked], scores: Scores) -> dict[str, float]:
    """Mean scores of the real glyphs that fit each prompt, averaged over the prompts that any fits.

    Args:
        real: what each real glyph is (`asked_of`), and `scores` of it against that.
    """
    columns = {n: np.array([getattr(r, n) for r in real]) for n in ("layout", "radical", "style", "codepoint")}
    per_prompt: dict[str, list[float]] = {name: [] for name in scores}
    for one in dict.fromkeys(asked):
        fits = np.ones(len(real), bool)
        for name, column in columns.items():
            if getattr(one, name):
                fits &= column == getattr(one, name)
        for name, values in scores.items():
            found = values[fits & np.isfinite(values)]
            if len(found) and _asks(one, name):
                per_prompt[name].append(float(found.mean()))
    return {name: float(np.mean(means)) for name, means in per_prompt.items() if means}


def _asks(one: Asked, measure: str) -> bool:
    part = {"components_f1": "codepoint", "strokes_error": "strokes"}.get(measure, measure)
    return bool(getattr(one, part))


def shuffled(asked: Sequence[Asked], rng: np.random.Generator) -> list[Asked]:
    """The same prompts dealt out anew within the list."""
    return [asked[i] for i in rng.permutation(len(asked))]


def agreement(scores: Scores) -> np.ndarray:
    """1 where a picture has the layout, radical and style it was asked for, 0 where not, nan where none was asked."""
    parts = np.stack([scores[name] for name in ("layout", "radical", "style")])
    return np.where(np.isnan(parts).all(axis=0), np.nan, np.where(np.isnan(parts), 1, parts).min(axis=0))
