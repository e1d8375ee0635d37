"""Accuracy of the glyph classifier on labelled glyphs, ready for its card."""

import numpy as np
import torch

from ldm.data.glyphs.components import radical_forms
from ldm.evaluation.glyphs.classifier import STROKE_SCALE, GlyphNet, Outputs, component_labels, to_ink
from scripts.glyph_classifier.data import UNLABELLED, Glyphs

NUM_COMMON_RADICALS = 36


@torch.no_grad()
def predict(net: GlyphNet, images: np.ndarray) -> Outputs:
    """The network's outputs for uint8 (n, 64, 64)."""
    return Outputs(*map(torch.cat, zip(*(net(to_ink(images[i : i + 256])) for i in range(0, len(images), 256)))))


def accuracy(
    net: GlyphNet, glyphs: Glyphs, names: list[str], commonest: list[int], components: list[str], threshold: float
) -> dict:
    """Accuracies ready for JSON: layout and radical overall and per class with counts, components, strokes.

    Args:
        names, components: of the outputs of those heads.
        commonest: the radicals that are reported one by one.
        threshold: probability from which a component counts as present.
    """
    outputs = predict(net, glyphs.images)
    guess = np.array(names)[outputs.layout.argmax(dim=1).numpy()]
    truth = np.array(glyphs.layouts)
    labelled = truth != UNLABELLED
    right = guess == truth
    group = {"horizontal": 1, "vertical": 2}
    same_group = np.array([group.get(g) == group.get(t) for g, t in zip(guess, truth, strict=True)])
    radical_right = outputs.radical.argmax(dim=1).numpy() + 1 == glyphs.radicals
    error = np.abs((outputs.strokes * STROKE_SCALE).numpy() - glyphs.strokes)
    present = outputs.components.sigmoid().numpy() >= threshold
    return {
        "glyphs": int(labelled.sum()),
        "layout": _fraction(right[labelled]),
        "layout_horizontal_vertical_other": _fraction(same_group[labelled]),
        "layout_per_class": {name: _class(right, truth == name) for name in names},
        "layout_precision": {name: _fraction(right[labelled & (guess == name)]) for name in names},
        "radical": _fraction(radical_right),
        "radical_36_commonest": _fraction(radical_right[np.isin(glyphs.radicals, commonest)]),
        "radical_per_class": {str(r): _class(radical_right, glyphs.radicals == r) for r in commonest},
        "components": component_scores(present, component_labels(glyphs.components, components)),
        "radical_among_components": radical_found(present, glyphs, components),
        "strokes_mean_error": round(float(error.mean()), 3),
        "strokes_within_1": _fraction(error <= 1),
    }


def component_scores(present: np.ndarray, labels: np.ndarray) -> dict:
    """Precision, recall and F1 over all (glyph, component) pairs, and the fraction of glyphs without an error.

    Args: present, labels: bool (n, components).
    """
    hits, predicted, true = int((present & labels).sum()), int(present.sum()), int(labels.sum())
    return {
        "precision": round(hits / predicted, 4) if predicted else None,
        "recall": round(hits / true, 4) if true else None,
        "f1": round(2 * hits / (predicted + true), 4) if predicted + true else None,
        "all_right": _fraction((present == labels).all(axis=1)),
    }


def radical_found(present: np.ndarray, glyphs: Glyphs, components: list[str]) -> dict:
    """How often a form of the radical is seen, of the glyphs that have one among their components."""
    forms = radical_forms()
    is_form = np.array([[r in forms.get(c, ()) for c in components] for r in range(215)])[glyphs.radicals]
    has = (component_labels(glyphs.components, components) & is_form).any(axis=1)
    return _class((present & is_form).any(axis=1), has)


def best_threshold(net: GlyphNet, glyphs: Glyphs, components: list[str]) -> float:
    """The probability from which a component counts as present that gives the greatest F1 on these glyphs."""
    probabilities, labels = (
        predict(net, glyphs.images).components.sigmoid().numpy(),
        component_labels(glyphs.components, components),
    )
    candidates = [round(0.05 * i, 2) for i in range(2, 19)]
    return max(candidates, key=lambda t: component_scores(probabilities >= t, labels)["f1"] or 0.0)


def common_radicals(radicals: np.ndarray, count: int = NUM_COMMON_RADICALS) -> np.ndarray:
    """The radicals that occur most often, commonest first."""
    values, counts = np.unique(radicals, return_counts=True)
    return values[np.argsort(-counts, kind="stable")][:count]


def _class(right: np.ndarray, members: np.ndarray) -> dict:
    return {"glyphs": int(members.sum()), "accuracy": _fraction(right[members])}


def _fraction(right: np.ndarray) -> float | None:
    return round(float(right.mean()), 4) if len(right) else None
