"""The words of prompts: those that a model knows best, those it does not, and those that are cut off.

A tokenizer that was trained on the captions tells which words are frequent in them: byte-pair merges are learned in the
order of their frequency, and a word that was merged completely was often there.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

WORD = re.compile(r"[^\W\d_]+")
END = "</w>"  # of the last token of a word
LARGEST = 20_000  # entries of a tokenizer that may have been trained on the captions alone; CLIP's own has 49,408
SHORTEST = 3  # letters of a frequent word
MOST = 16  # frequent words
COMMON = frozenset("and are for from its not off one out over that the this under with".split())
NAMED = 6  # unknown words, at most


class Words:
    """The words that a tokenizer knows.

    It works on a copy: a call of the tokenizer itself changes how long the prompts of the next call may be.

    Args:
        tokenizer: of transformers, with a byte-level BPE that marks the end of a word, as CLIP's; of any other nothing
            is known.
    """

    def __init__(self, tokenizer: Any):
        from tokenizers import Tokenizer

        self.length = int(getattr(tokenizer, "model_max_length", None) or 0)  # 0: unknown
        backend = getattr(tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else None
        self.own = Tokenizer.from_str(text) if text else None
        if self.own is not None:
            self.own.no_truncation()
            self.own.no_padding()
        model = json.loads(text)["model"] if text else {}
        merges = model.get("merges") or []
        self.merges = [tuple(one.split(" ") if isinstance(one, str) else one) for one in merges]
        vocabulary = model.get("vocab")
        self.vocabulary = frozenset(vocabulary if isinstance(vocabulary, dict) else ())

    @property
    def of_captions(self) -> bool:
        """Whether the tokenizer was trained on the captions, and learned words of them."""
        return bool(self.merges) and len(self.vocabulary) <= LARGEST

    def frequent(self) -> list[str]:
        """The most frequent words of the captions, the most frequent first; [] where the tokenizer does not know."""
        if not self.of_captions:
            return []
        endings = {pair[1] for pair in self.merges}  # 'ness' of 'sickness': an ending, or a word that is one too
        learned = ("".join(pair) for pair in self.merges)
        words = (token.removesuffix(END) for token in learned if token.endswith(END) and token not in endings)
        return [w for w in words if len(w) >= SHORTEST and WORD.fullmatch(w) and w not in COMMON][:MOST]

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that the captions have seldom or never: the tokenizer has only pieces of them."""
        if not self.of_captions:
            return []
        return [word for word in words_of([prompt]) if len(word) >= SHORTEST and f"{word}{END}" not in self.vocabulary]

    def lost(self, prompt: str) -> str:
        """The end of a prompt for which the text encoder has no room, in complete words; '' if all of it is used."""
        offsets = self.own.encode(prompt).offsets if self.own is not None and self.length else []
        if len(offsets) <= self.length:
            return ""
        start = offsets[self.length - 1][0]
        while start and prompt[start - 1].isalnum() and prompt[start].isalnum():
            start -= 1
        return prompt[start:].strip()


def words_of(texts: Iterable[str]) -> list[str]:
    """The different words of texts, lower case, in their order."""
    return list(dict.fromkeys(word for text in texts for word in WORD.findall(text.lower())))


@cache
def glyph_caption_words() -> frozenset[str]:
    """All words that a caption of a glyph may have."""
    from ldm.data.glyphs.dataset import load_table
    from ldm.data.glyphs.names import caption_slots

    senses = (sense for glyph in load_table() for sense in glyph.senses)
    grammar = ["glyph with the radical meaning stroke strokes of and a an in next to beside over under within inside"]
    return frozenset(words_of([*grammar, *caption_slots(), *senses]))


def described(prompt: str, positions: bool) -> list[str]:
    """What to say for the first Chinese character of a prompt, for captions are English; [] without one."""
    from ldm.data.glyphs.dataset import describe, load_table

    if prompt.isascii():
        return []
    rows = {row.char: row for row in load_table()}
    known = [rows[char] for char in prompt if char in rows]
    return [f"Prompts are in English. For {row.char} say: “{describe(row, positions)}”." for row in known[:1]]


def hints(prompt: str | None, words: Words, known: frozenset[str] | None = None) -> list[str]:
    """What a person should know of a prompt: sentences, [] if there is nothing.

    Args:
        known: all words of the captions, where they are known.
    """
    if prompt is None:
        return []
    found = []
    strange = [word for word in words_of([prompt]) if word not in known] if known else words.unknown(prompt)
    if strange:
        seldom = "are in no caption of the training" if known else "are seldom or never in the captions of the training"
        found.append(f"These words {seldom}: {listed(strange)}.")
    if lost := words.lost(prompt):
        found.append(f"The prompt is too long: “{lost}” was cut off.")
    return found


def listed(words: Sequence[str]) -> str:
    """'a, b and 3 more'."""
    more = len(words) - NAMED
    return ", ".join(words[:NAMED]) + (f" and {more} more" if more > 0 else "")
