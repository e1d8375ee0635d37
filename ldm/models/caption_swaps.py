"""Captions with one thing wrong: hard negatives for contrastive training (Yuksekgonul et al. 2023, arXiv 2210.01936).

A contrastive loss over random batches is content with a bag of words; a text that differs in one word is told apart
only by what that word says of the image. Data that know the slots of their captions give them as `caption_slots`:
phrase -> (slot, meaning); a phrase is replaced by one of the same slot with another meaning. Otherwise a word is
replaced by another one that stands in the same position of another caption, which may by chance be right too.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

Slots = Mapping[str, tuple[str, str]]


class CaptionSwaps:
    """Replaces one phrase or word of a caption.

    Args:
        slots: of the data, see above; {} = none.
        others: captions to take words from, where no phrase of a slot is in the caption.
    """

    def __init__(self, slots: Slots, others: Sequence[str]):
        self.slots, self.others = slots, others
        longest = sorted(slots, key=len, reverse=True)
        self._phrases = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest))})(?![\w-])") if slots else None
        self._in_slot: dict[str, list[str]] = {}
        for phrase, (slot, _) in slots.items():
            self._in_slot.setdefault(slot, []).append(phrase)

    def __call__(self, caption: str, rng: np.random.Generator) -> str:
        """Another caption; the same one where nothing can be replaced."""
        found = list(self._phrases.finditer(caption)) if self._phrases else []
        if not found:
            return self._by_position(caption, rng)
        match = found[rng.integers(len(found))]
        slot, meaning = self.slots[match.group()]
        wrong = [phrase for phrase in self._in_slot[slot] if self.slots[phrase][1] != meaning]
        if not wrong:
            return caption
        return caption[: match.start()] + wrong[rng.integers(len(wrong))] + caption[match.end() :]

    def _by_position(self, caption: str, rng: np.random.Generator) -> str:
        words = caption.split()
        for i in rng.permutation(len(self.others))[:16].tolist():
            other = self.others[i].split()
            differing = [j for j, (a, b) in enumerate(zip(words, other, strict=False)) if a != b]
            if differing:
                j = differing[rng.integers(len(differing))]
                return " ".join([*words[:j], other[j], *words[j + 1 :]])
        return caption
