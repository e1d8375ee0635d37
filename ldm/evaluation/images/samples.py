"""What `ldm evaluate` generates of a run on one's own images: held-out captions, some again with one word changed, and
captions of training images.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldm.data import evenly_spaced_indices
from ldm.evaluation.images.one_word import Change, changes
from ldm.evaluation.run_loading import OpenRun
from ldm.pipelines.generation import SamplingOptions, generate_pixels

log = logging.getLogger(__name__)

TRAINING = 2000  # training images and captions that are compared with, evenly chosen
ONE_WORD = 128  # captions of which one word is changed, at most
SEEN = 128  # captions of training images that are generated, at most


@dataclass(frozen=True)
class Prompts:
    """What is generated: a caption of each chosen held-out image ("" without conditioning), some with one word changed,
    and captions of training images.

    Attributes: held_out, indices of those images; training, of captions of training images the index of one.
    """

    held_out: np.ndarray
    captions: list[str]
    changes: list[Change]
    seen: list[str]
    training: dict[str, int]

    @property
    def digest(self) -> str:
        """Of all captions, in order."""
        texts = [*self.captions, *(change.caption for change in self.changes), *self.seen]
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Generated:
    """Images uint8 (n, h, w, c): of all captions, of the changed ones from the same seeds, and of the seen ones."""

    images: np.ndarray
    changed: np.ndarray
    seen: np.ndarray


def prompts_of(opened: OpenRun, chosen: np.ndarray, scored: bool) -> Prompts:
    """Captions of the chosen held-out images; if words are `scored`, changes of one word and seen captions too."""
    if opened.settings.text.source == "none":
        return Prompts(chosen, [""] * len(chosen), [], [], {})
    train, held, rng = opened.data.train, opened.data.validation, np.random.default_rng(0)
    captions = [held.caption(int(i), rng) for i in chosen]
    known = {train.caption(int(i), rng): int(i) for i in evenly_spaced_indices(len(train), TRAINING)}
    if not scored:
        return Prompts(chosen, captions, [], [], known)
    texts = [caption for caption in known if caption]
    seen = [texts[i] for i in evenly_spaced_indices(len(texts), min(SEEN, len(captions)))]
    return Prompts(chosen, captions, changes(captions, [*known, *captions], ONE_WORD), seen, known)


def generate_all(pipeline, prompts: Prompts, seed: int, sampling: SamplingOptions) -> Generated:
    """Image i of a held-out or seen caption from seed + i, that of a changed caption from the original one's seed."""
    images = generate_in_batches(pipeline, prompts.captions, range(seed, seed + len(prompts.captions)), sampling)

    def more(texts: list[str], seeds: Sequence[int]) -> np.ndarray:
        return generate_in_batches(pipeline, texts, seeds, sampling) if texts else images[:0]

    changed = more([each.caption for each in prompts.changes], [seed + each.item for each in prompts.changes])
    return Generated(images, changed, more(prompts.seen, range(seed, seed + len(prompts.seen))))


def generate_in_batches(pipeline, captions: list[str], seeds: Sequence[int], sampling: SamplingOptions) -> np.ndarray:
    """An image of each caption and seed, uint8 (n, h, w, c), batch by batch: as floats all take much memory."""
    batches = []
    for start in range(0, len(captions), sampling.batch_size):
        part = slice(start, start + sampling.batch_size)
        batches.append(generate_pixels(pipeline, captions[part], seeds[part], sampling))
        log.info("%d of %d images generated", min(part.stop, len(captions)), len(captions))
    return np.concatenate(batches)
