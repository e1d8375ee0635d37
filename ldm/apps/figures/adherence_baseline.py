"""Do the measures of adherence fall to chance level when the captions belong to other glyphs?"""

from collections.abc import Sequence

import numpy as np

from ldm.apps.figures.figure import Drawing, Setting
from ldm.apps.figures.inputs import glyphs
from ldm.apps.figures.plot_style import GREY, PALETTE, page
from ldm.data import evenly_spaced_indices
from ldm.evaluation.comparison import Scores
from ldm.evaluation.glyphs.adherence import Predictions, Scorer, permuted, prompt_specs
from ldm.evaluation.glyphs.classifier import GlyphClassifier
from ldm.evaluation.glyphs.prompts import PromptSpec
from ldm.evaluation.glyphs.samples import PROBED, STYLES, glyph_images
from ldm.evaluation.glyphs.style_probe import StyleProbe

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the captions that are permuted
NUM_PERMUTATIONS = 8
LABELS = {"layout": "layout", "radical": "radical", "components_f1": "components (F1)", "style": "style"}


def partly_permuted(specs: Sequence[PromptSpec], share: float, rng: np.random.Generator) -> list[PromptSpec]:
    """The same captions, a fraction of them, chosen at random, permuted among themselves."""
    chosen = rng.permutation(len(specs))[: round(share * len(specs))]
    result = list(specs)
    for place, one in zip(chosen, permuted([specs[i] for i in chosen], rng), strict=True):
        result[place] = one
    return result


def falling(
    scorer: Scorer, predictions: Predictions, specs: Sequence[PromptSpec], permutations: int = NUM_PERMUTATIONS
) -> dict[str, list[float]]:
    """Mean of every measure for each of SHARES, over `permutations` permutations."""
    rng = np.random.default_rng(0)
    means: dict[str, list[float]] = {}
    for share in SHARES:
        scores: list[Scores] = [
            scorer.scores(predictions, partly_permuted(specs, share, rng)) for _ in range(permutations)
        ]
        for name in (name for name, values in scores[0].items() if np.isfinite(values).any()):
            means.setdefault(name, []).append(float(np.mean([np.nanmean(one[name]) for one in scores])))
    return means


def obedience(setting: Setting) -> Drawing:
    """Shares that agree, and the error in strokes, of real unseen glyphs whose captions are less and less theirs."""
    train, test = (glyphs(setting, name, styles=STYLES) for name in ("train", "test"))
    fit = evenly_spaced_indices(len(train), 64 if setting.quick else PROBED)
    probe = StyleProbe(glyph_images(train, fit), [train.meta(i)["style"] for i in fit.tolist()])
    scorer, specs = Scorer(GlyphClassifier(), probe), prompt_specs(test)
    found = falling(scorer, scorer(glyph_images(test)), specs)
    figure, axes = page(1, 2)
    left, right = axes[0]
    for colour, (name, label) in zip(PALETTE, LABELS.items()):
        left.plot(SHARES, found[name], "o-", ms=2.5, color=colour, label=label)
    right.plot(SHARES, found["strokes_error"], "o-", ms=2.5, color=GREY)
    left.set_ylim(0, 1.05)
    left.set_ylabel("agrees")
    right.set_ylim(0, None)
    right.set_ylabel("strokes, mean error")
    for axis in (left, right):
        axis.set_xlabel("fraction of captions permuted")
    left.legend(loc="lower left", fontsize=6)
    return Drawing(figure, {"glyphs": len(specs)} | {n: [round(v, 4) for v in values] for n, values in found.items()})
