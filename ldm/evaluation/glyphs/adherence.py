"""Prompt adherence of glyph images: how far each agrees with its prompt.

Every measure is an array with one number per image, `nan` where the prompt does not specify it. Two more numbers give
its mean a scale: the **ceiling**, the same measure of real characters that neither the generator nor the classifier was
trained on, and the **floor**, chance level: the same images scored against randomly permuted prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ldm.data.glyphs.captions import RADICALS
from ldm.data.glyphs.components import radical_forms
from ldm.data.glyphs.dataset import GlyphData
from ldm.data.glyphs.names import component_names
from ldm.evaluation.comparison import Scores
from ldm.evaluation.glyphs.classifier import GlyphClassifier, GlyphPrediction
from ldm.evaluation.glyphs.prompts import PromptSpec
from ldm.evaluation.glyphs.style_probe import StyleProbe

# name -> whether higher is better; all are fractions but for strokes, which are counted
MEASURES = {
    "layout": True, "radical": True, "components": True, "both": True, "components_f1": True, "strokes_error": False,
    "style": True,
}  # fmt: skip


@dataclass(frozen=True)
class Predictions:
    """What the glyph classifier and the style probe predict for n images."""

    glyphs: GlyphPrediction
    styles: np.ndarray  # str (n,), a key of STYLE_PHRASES; "" of a blank image


class Scorer:
    """The glyph classifier and the style probe."""

    def __init__(self, classifier: GlyphClassifier, probe: StyleProbe):
        self.classifier, self.probe = classifier, probe

    def __call__(self, images: np.ndarray) -> Predictions:
        """Of glyphs uint8 (n, h, w), dark on white."""
        glyphs = self.classifier.predict(images)
        return Predictions(glyphs, np.where(glyphs.blank, "", self.probe(images)))

    def scores(self, predictions: Predictions, specs: Sequence[PromptSpec]) -> Scores:
        """Each of MEASURES as float64 (n,), nan where the prompt does not specify it or the classifier has no class."""
        glyphs = predictions.glyphs
        classes = [self.classifier.layout_class(spec.layout) if spec.layout else None for spec in specs]
        strokes = np.array([spec.strokes or np.nan for spec in specs])
        layout = _correct(glyphs.layouts, classes)
        radical = _correct(glyphs.radicals.tolist(), [spec.radical or None for spec in specs])
        components = self._components(glyphs, specs)
        return {
            "layout": layout,
            "radical": radical,
            "components": components,
            "both": layout * np.fmin(radical, components),
            "components_f1": self._components_f1(glyphs, specs),
            "strokes_error": np.abs(glyphs.strokes - strokes),
            "style": _correct(predictions.styles.tolist(), [spec.style or None for spec in specs]),
        }

    def _components(self, glyphs: GlyphPrediction, specs: Sequence[PromptSpec]) -> np.ndarray:
        """Whether all components that are asked for are there, each in any of its forms."""
        present = self.classifier.present(glyphs)
        found = np.full(len(specs), np.nan)
        for i, spec in enumerate(specs):
            columns = [known_forms(name, self.classifier.components) for name, _ in spec.named]
            if columns and all(columns):
                found[i] = all(present[i, forms].any() for forms in columns)
        return found

    def _components_f1(self, glyphs: GlyphPrediction, specs: Sequence[PromptSpec]) -> np.ndarray:
        """F1 of the components against those of the described character: 2 |both| / (|predicted| + |true|)."""
        known = np.array([bool(spec.codepoint) for spec in specs])
        true = np.zeros((len(specs), len(self.classifier.components)), bool)
        true[known] = self.classifier.component_labels([spec.codepoint for spec in specs if spec.codepoint])
        predicted = self.classifier.present(glyphs)
        f1 = 2 * (predicted & true).sum(1) / np.maximum(predicted.sum(1) + true.sum(1), 1)
        return np.where(true.any(1), f1, np.nan)


@cache
def forms_of(name: str) -> frozenset[str]:
    """Every form of a component that has a name: of 'water' \u6c34, \u6c35 and \u6c3a."""
    radical = RADICALS.index(name) + 1 if name in RADICALS else 0
    own = {component for component, other in component_names().items() if other == name}
    return frozenset(own | {component for component, radicals in radical_forms().items() if radical in radicals})


def known_forms(name: str, components: Sequence[str]) -> list[int]:
    """The places in a list of components of the forms of a name."""
    return [i for i, component in enumerate(components) if component in forms_of(name)]


def _correct(predicted: Sequence, expected: Sequence) -> np.ndarray:
    return np.array([np.nan if e is None else float(p == e) for p, e in zip(predicted, expected, strict=True)])


def prompt_specs(data: GlyphData) -> list[PromptSpec]:
    """What a complete caption of each glyph of a split would say."""
    rows = (data.meta(i) for i in range(len(data)))
    return [
        PromptSpec(
            "character", "", layout=r["structure"], radical=r["radical"], style=r["style"], strokes=r["strokes"],
            codepoint=ord(r["char"]),
        )
        for r in rows
    ]  # fmt: skip


def ceiling(specs: Sequence[PromptSpec], real: Sequence[PromptSpec], scores: Scores) -> dict[str, float]:
    """Mean scores of the real glyphs that match each prompt, averaged over the prompts that any matches.

    Args:
        real: `prompt_specs` of the real glyphs, and the `scores` of each against its own.
    """
    columns = {n: np.array([getattr(r, n) for r in real]) for n in ("layout", "radical", "style", "codepoint")}
    per_prompt: dict[str, list[float]] = {name: [] for name in scores}
    for spec in dict.fromkeys(specs):
        matching = np.ones(len(real), bool)
        for name, column in columns.items():
            if getattr(spec, name):
                matching &= column == getattr(spec, name)
        for name, values in scores.items():
            known = values[matching & np.isfinite(values)]
            if len(known) and _specifies(spec, name):
                per_prompt[name].append(float(known.mean()))
    return {name: float(np.mean(means)) for name, means in per_prompt.items() if means}


def _specifies(spec: PromptSpec, measure: str) -> bool:
    if measure == "both":
        return bool(spec.layout and (spec.radical or spec.parts))
    names = {"components_f1": "codepoint", "strokes_error": "strokes", "components": "parts"}
    return bool(getattr(spec, names.get(measure, measure)))


def permuted(specs: Sequence[PromptSpec], rng: np.random.Generator) -> list[PromptSpec]:
    """The same prompts in random order."""
    return [specs[i] for i in rng.permutation(len(specs))]


def complete_agreement(scores: Scores) -> np.ndarray:
    """1 where an image has layout, radical, components and style of its prompt, 0 where not, nan: none is specified."""
    stacked = np.stack([scores[name] for name in ("layout", "radical", "components", "style") if name in scores])
    return np.where(np.isnan(stacked).all(axis=0), np.nan, np.where(np.isnan(stacked), 1, stacked).min(axis=0))
