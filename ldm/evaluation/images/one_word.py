"""The one-word test: change one word of a caption, keep the seed. Does the image follow, and does the rest stay?

A word is replaced by one that other captions have between the same neighbours: 'a red heart' has 'a blue heart' beside
it, if the data do. The image of the changed caption follows if it is nearer to the changed caption than to the original
one: half of all images would, if they had nothing to do with either.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldm.evaluation.metrics.proportions import proportion
from ldm.utils.transparency import on_grounds

FUNCTION_WORDS = frozenset("a an the of in on at and or with is are to for from by".split())
CHANGED = 32  # of 255: a pixel that differs by more in any channel has changed


class Change(NamedTuple):
    """A caption, by its index, with one word replaced."""

    item: int
    old: str
    new: str
    caption: str


def changes(captions: Sequence[str], corpus: Iterable[str], limit: int, seed: int = 0) -> list[Change]:
    """One change of each caption that has one, of at most `limit` captions, evenly chosen.

    Args:
        corpus: captions to take words from. A change that is itself one of them comes first: real images show it.
    """
    known = dict.fromkeys(caption for caption in corpus if caption)
    slots: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for caption in known:
        for before, word, after in _in_context(caption.split()):
            slots[before, after][word] = None
    rng, found = np.random.default_rng(seed), []
    for index, caption in enumerate(captions):
        words, possible = caption.split(), []
        for place, (before, word, after) in enumerate(_in_context(words)):
            others = [new for new in slots[before, after] if new != word and not {new, word} & FUNCTION_WORDS]
            possible += [
                Change(index, word, new, " ".join([*words[:place], new, *words[place + 1 :]])) for new in others
            ]
        possible = [change for change in possible if change.caption in known] or possible
        if possible:
            found.append(possible[int(rng.integers(len(possible)))])
    chosen = np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int)
    return [found[i] for i in chosen]


def _in_context(words: list[str]) -> list[tuple[str, str, str]]:
    """Each word between its neighbours, "" at the ends."""
    return list(zip(["", *words], words, [*words[1:], ""], strict=False))


def follows(images: np.ndarray, made: Sequence[Change], captions: Sequence[str], clip: Callable) -> np.ndarray:
    """Whether each image is nearer to its changed caption than to the original one; bool (m,).

    Args:
        images: uint8 (m, h, w, c), one for each change; clip: images and as many captions -> unit features of both.
    """
    image, new = (x.numpy() for x in clip(images, [change.caption for change in made]))
    old = clip(images, [captions[change.item] for change in made])[1].numpy()
    return (image * new).sum(1) > (image * old).sum(1)


def section(
    made: Sequence[Change],
    captions: Sequence[str],
    generated: np.ndarray,
    changed: np.ndarray,
    real: dict[str, np.ndarray],
    clip: Callable,
) -> dict[str, Any]:
    """The numbers of the report.

    Args:
        generated: images of all captions; changed: of the changed ones, from the same seeds, uint8 (m, h, w, c).
        real: caption -> a real image, for the ceiling.
    Returns: `proportion` of images that follow, with "ceiling" (real images of changed captions; None where there are
        none), "floor" (chance), "unchanged" (the images of the original captions, scored alike), "pixels", the fraction
        of pixels that the word changed, and "pixels_of_others", that differ between images of two captions.
    """
    index = [change.item for change in made]
    known = [change for change in made if change.caption in real]
    top = follows(np.stack([real[change.caption] for change in known]), known, captions, clip) if known else None
    others = generated[np.roll(index, 1)]
    return proportion(follows(changed, made, captions, clip)) | {
        "ceiling": None if top is None else round(float(top.mean()), 4),
        "real": len(known),
        "floor": 0.5,
        "unchanged": round(float(follows(generated[index], made, captions, clip).mean()), 4),
        "pixels": round(changed_pixels(generated[index], changed), 4),
        "pixels_of_others": round(changed_pixels(generated[index], others), 4),
    }


def changed_pixels(first: np.ndarray, second: np.ndarray) -> float:
    """The fraction of pixels of two sets of images, uint8 (n, h, w, c), that differ by more than CHANGED as seen."""
    first, second = (np.concatenate(on_grounds(images), axis=3) for images in (first, second))
    return float((np.abs(first.astype(int) - second.astype(int)).max(3) > CHANGED).mean())
