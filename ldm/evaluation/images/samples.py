"""What `ldm evaluate` generates of a run on one's own images: held-out captions, some again with one word changed."""

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


@dataclass(frozen=True)
class Prompts:
    """What is generated: a caption of each chosen held-out image ("" without conditioning), some with one word changed.

    Attributes: held_out, indices of those images; training, of captions of training images the index of one.
    """

    held_out: np.ndarray
    captions: list[str]
    changes: list[Change]
    training: dict[str, int]

    @property
    def digest(self) -> str:
        """Of all captions, in order."""
        texts = [*self.captions, *(change.caption for change in self.changes)]
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Generated:
    """Images of all captions, uint8 (n, h, w, c), and of the changed ones, (m, h, w, c), from the same seeds."""

    images: np.ndarray
    changed: np.ndarray


def prompts_of(opened: OpenRun, chosen: np.ndarray, changed: bool) -> Prompts:
    """Captions of the chosen held-out images, and changes of one word if `changed`."""
    if opened.settings.text.source == "none":
        return Prompts(chosen, [""] * len(chosen), [], {})
    train, held, rng = opened.data.train, opened.data.validation, np.random.default_rng(0)
    captions = [held.caption(int(i), rng) for i in chosen]
    known = {train.caption(int(i), rng): int(i) for i in evenly_spaced_indices(len(train), TRAINING)}
    made = changes(captions, [*known, *captions], ONE_WORD) if changed else []
    return Prompts(chosen, captions, made, known)


def generate_all(pipeline, prompts: Prompts, seed: int, sampling: SamplingOptions) -> Generated:
    """Image i of caption i from seed + i, that of a changed caption from the seed of the original one."""
    images = generate_in_batches(pipeline, prompts.captions, range(seed, seed + len(prompts.captions)), sampling)
    texts, seeds = [change.caption for change in prompts.changes], [seed + change.item for change in prompts.changes]
    return Generated(images, generate_in_batches(pipeline, texts, seeds, sampling) if texts else images[:0])


def generate_in_batches(pipeline, captions: list[str], seeds: Sequence[int], sampling: SamplingOptions) -> np.ndarray:
    """An image of each caption and seed, uint8 (n, h, w, c), batch by batch: as floats all take much memory."""
    batches = []
    for start in range(0, len(captions), sampling.batch_size):
        part = slice(start, start + sampling.batch_size)
        batches.append(generate_pixels(pipeline, captions[part], seeds[part], sampling))
        log.info("%d of %d images generated", min(part.stop, len(captions)), len(captions))
    return np.concatenate(batches)
