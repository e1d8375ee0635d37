"""A light evaluation while a run trains: a few prompts drawn and judged wherever it draws its sample grid."""

from collections.abc import Callable

import numpy as np

from ldm.config.settings import LdmSettings
from ldm.evaluation.generation import Drawing, draw
from ldm.pipelines.pipeline import Pipeline

SEED = 2**31  # far from the seeds of sample grids and of `ldm evaluate`
LAYOUTS = ("horizontal", "vertical", "upper left", "lower left")
RADICALS = (85, 140, 75, 30)  # water, grass, tree, mouth: the commonest
Watch = Callable[[Pipeline], dict[str, float]]


def watch_for(settings: LdmSettings) -> Watch | None:
    """What judges this run's pictures: shares that agree with the prompts, by part; None where nothing can.

    It costs `sampling.judged` pictures each time, drawn from seeds of their own: a run that is watched learns the same.
    """
    subject = {"glyphs": glyphs, "digits": digits}.get(settings.data.source)
    if subject is None or settings.text.source == "none" or not settings.sampling.judged:
        return None
    count = settings.sampling.judged
    return lambda pipeline: subject(pipeline, count)


def glyphs(pipeline: Pipeline, count: int) -> dict[str, float]:
    """Of `count` pictures, half asked for a layout and half for a radical: the shares that the classifier sees."""
    from ldm.data.glyphs.captions import layout_phrase, radical_phrase
    from ldm.evaluation.glyphs.classifier import GlyphClassifier

    classifier = GlyphClassifier()
    half = -(-count // 2)
    layouts = [LAYOUTS[i % len(LAYOUTS)] for i in range(half)]
    radicals = [RADICALS[i % len(RADICALS)] for i in range(half)]
    prompts = [layout_phrase(one) for one in layouts] + [f"glyph {radical_phrase(one)}" for one in radicals]
    images = draw(pipeline, prompts, range(SEED, SEED + len(prompts)), Drawing())
    judged = classifier.judge(images.mean(axis=3).round().astype(np.uint8))
    expected = [classifier.layout_class(one) for one in layouts]
    return {
        "judged/layout": _share(a == b for a, b in zip(judged.layouts[:half], expected, strict=True)),
        "judged/radical": _share(a == b for a, b in zip(judged.radicals[half:].tolist(), radicals, strict=True)),
    }


def digits(pipeline: Pipeline, count: int) -> dict[str, float]:
    """Of `count` pictures 'a red 7', spread over all pairs: shares with the right digit, ink, and both."""
    from ldm.data.digits import PAIRS, phrase
    from ldm.evaluation.digits.classifier import DigitJudge

    pairs = [PAIRS[i * len(PAIRS) // count % len(PAIRS)] for i in range(count)]
    prompts = [phrase(str(digit), ink) for digit, ink in pairs]
    judged = DigitJudge().judge(draw(pipeline, prompts, range(SEED, SEED + count), Drawing()))
    digit = [a == b for a, (b, _) in zip(judged.digits.tolist(), pairs, strict=True)]
    ink = [a == b for a, (_, b) in zip(judged.inks, pairs, strict=True)]
    both = (a and b for a, b in zip(digit, ink, strict=True))
    return {"judged/digit": _share(digit), "judged/ink": _share(ink), "judged/both": _share(both)}


def _share(right) -> float:
    return float(np.mean(list(right)))
