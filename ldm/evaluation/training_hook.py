"""Small evaluations during training: prompts are scored wherever a run writes its sample grid, copies are counted
wherever a checkpoint is validated.
"""

from collections.abc import Callable

import numpy as np

from ldm.config.settings import LdmSettings
from ldm.data import Splits, evenly_spaced_indices, is_own
from ldm.data.buckets import at_one_size
from ldm.evaluation.images.copies import CopyDetector
from ldm.formats.shards import is_pattern
from ldm.pipelines.generation import SamplingOptions, generate_pixels
from ldm.pipelines.pipeline import Pipeline
from ldm.training.validation import wanted

SEED = 2**31  # far from the seeds of sample grids and of `ldm evaluate`
LAYOUTS = ("horizontal", "vertical", "upper left", "lower left")
RADICALS = (85, 140, 75, 30)  # water, grass, tree, mouth: the most frequent
COPIES, COPY_STEPS = 16, 10  # images that are generated to be compared, and their sampling steps
FEWEST_HELD_OUT = 20
Hook = Callable[[Pipeline], dict[str, float]]


def hook_for(settings: LdmSettings) -> Hook | None:
    """What scores this run's images: accuracies against the prompts, by log key; None where nothing can.

    It generates `sampling.judged` images each time, from seeds of their own: training itself is unaffected.
    """
    suite = {"glyphs": glyph_accuracy, "digits": digit_accuracy}.get(settings.data.source)
    if suite is None or settings.text.source == "none" or not settings.sampling.judged:
        return None
    count = settings.sampling.judged
    return lambda pipeline: suite(pipeline, count)


def copy_hook(settings: LdmSettings, data: Splits) -> Callable[[Pipeline], float] | None:
    """What counts near copies of training images among a run's images of held-out captions: a fraction of them.

    None where nobody asks, or where too few images are held out to say how near an image of another subject may be.
    """
    own = is_own(settings.data.source) or is_pattern(settings.data.source)  # shards hold too many to compare with
    asked = wanted(settings) and settings.train.max_copies < 1 and not own
    if not asked or len(data.validation) < FEWEST_HELD_OUT:
        return None
    detectors: list[CopyDetector] = []  # made at the first call
    rng = np.random.default_rng(0)
    prompts = [data.validation.caption(int(i), rng) for i in evenly_spaced_indices(len(data.validation), COPIES)]
    options = SamplingOptions(steps=min(COPY_STEPS, settings.sampling.num_inference_steps))

    def count(pipeline: Pipeline) -> float:
        if not detectors:
            shown = at_one_size(data)
            detectors.append(CopyDetector(shown.train, shown.validation))
        images = generate_pixels(pipeline, prompts, range(SEED, SEED + len(prompts)), options)
        return float(detectors[0](images).mean())

    return count


def glyph_accuracy(pipeline: Pipeline, count: int) -> dict[str, float]:
    """Accuracy of layout and radical over `count` images, half with a layout and half with a radical in the prompt."""
    from ldm.data.glyphs.captions import layout_phrase, radical_phrase
    from ldm.evaluation.glyphs.classifier import GlyphClassifier

    classifier = GlyphClassifier()
    half = -(-count // 2)
    layouts = [LAYOUTS[i % len(LAYOUTS)] for i in range(half)]
    radicals = [RADICALS[i % len(RADICALS)] for i in range(half)]
    prompts = [layout_phrase(name) for name in layouts] + [f"glyph {radical_phrase(number)}" for number in radicals]
    images = generate_pixels(pipeline, prompts, range(SEED, SEED + len(prompts)))
    predicted = classifier.predict(images.mean(axis=3).round().astype(np.uint8))
    return {
        "judged/layout": _accuracy(predicted.layouts[:half], [classifier.layout_class(name) for name in layouts]),
        "judged/radical": _accuracy(predicted.radicals[half:].tolist(), radicals),
    }


def digit_accuracy(pipeline: Pipeline, count: int) -> dict[str, float]:
    """Accuracy of digit, foreground colour and both over `count` images 'a red 7', spread over all pairs."""
    from ldm.data.digits import PAIRS, phrase
    from ldm.evaluation.digits.classifier import DigitClassifier

    pairs = [PAIRS[i * len(PAIRS) // count % len(PAIRS)] for i in range(count)]
    images = generate_pixels(pipeline, [phrase(str(digit), ink) for digit, ink in pairs], range(SEED, SEED + count))
    predicted = DigitClassifier().predict(images)
    digits, inks = predicted.digits.tolist(), predicted.inks
    return {
        "judged/digit": _accuracy(digits, [digit for digit, _ in pairs]),
        "judged/ink": _accuracy(inks, [ink for _, ink in pairs]),
        "judged/both": _accuracy(list(zip(digits, inks)), pairs),
    }


def _accuracy(predicted: list, expected: list) -> float:
    return float(np.mean([p == e for p, e in zip(predicted, expected, strict=True)]))
