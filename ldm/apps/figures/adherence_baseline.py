"""Do the measures of adherence fall to their floor when the captions belong to other glyphs?"""

from collections.abc import Sequence

import numpy as np

from ldm.apps.figures.figure import Drawing, Setting
from ldm.apps.figures.inputs import glyphs
from ldm.apps.figures.plot_style import GREY, PALETTE, page
from ldm.data import spread
from ldm.evaluation.glyphs.adherence import Judge, Judged, Scores, asked_of, shuffled
from ldm.evaluation.glyphs.classifier import GlyphClassifier
from ldm.evaluation.glyphs.prompts import Asked
from ldm.evaluation.glyphs.samples import PROBED, STYLES, pictures
from ldm.evaluation.glyphs.style_probe import StyleProbe

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the captions that are dealt out anew
DEALS = 8
LABELS = {"layout": "layout", "radical": "radical", "components_f1": "components (F1)", "style": "style"}


def dealt(asked: Sequence[Asked], share: float, rng: np.random.Generator) -> list[Asked]:
    """The same captions, a share of them, drawn at random, dealt out anew among themselves."""
    chosen = rng.permutation(len(asked))[: round(share * len(asked))]
    result = list(asked)
    for place, one in zip(chosen, shuffled([asked[i] for i in chosen], rng), strict=True):
        result[place] = one
    return result


def falling(judge: Judge, judged: Judged, asked: Sequence[Asked], deals: int = DEALS) -> dict[str, list[float]]:
    """Mean of every measure for each of SHARES, over `deals` deals."""
    rng = np.random.default_rng(0)
    means: dict[str, list[float]] = {}
    for share in SHARES:
        scores: list[Scores] = [judge.scores(judged, dealt(asked, share, rng)) for _ in range(deals)]
        for name in scores[0]:
            means.setdefault(name, []).append(float(np.mean([np.nanmean(one[name]) for one in scores])))
    return means


def obedience(setting: Setting) -> Drawing:
    """Shares that agree, and the error in strokes, of real unseen glyphs whose captions are less and less theirs."""
    train, test = (glyphs(setting, name, styles=STYLES) for name in ("train", "test"))
    fit = spread(len(train), 64 if setting.quick else PROBED)
    probe = StyleProbe(pictures(train, fit), [train.meta(i)["style"] for i in fit.tolist()])
    judge, asked = Judge(GlyphClassifier(), probe), asked_of(test)
    found = falling(judge, judge(pictures(test)), asked)
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
        axis.set_xlabel("share of captions dealt out anew")
    left.legend(loc="lower left", fontsize=6)
    return Drawing(figure, {"glyphs": len(asked)} | {n: [round(v, 4) for v in values] for n, values in found.items()})
