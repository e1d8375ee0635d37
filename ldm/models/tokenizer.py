"""A byte-level BPE tokenizer trained on the captions, in the `CLIPTokenizer` class."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import CLIPTokenizer

from ldm.utils.untrusted_files import read_text

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Vocabulary:
    """As much of a tokenizer as the shape of a text encoder needs, before there is one: the markers come last."""

    size: int

    def __len__(self) -> int:
        return self.size

    @property
    def bos_token_id(self) -> int:
        return self.size - 2

    @property
    def eos_token_id(self) -> int:
        return self.size - 1

    pad_token_id = eos_token_id


def train_tokenizer(captions: Iterable[str], vocab_size: int, context_length: int) -> CLIPTokenizer:
    """A byte-level BPE in the `CLIPTokenizer` class, at most `vocab_size` entries; nothing is out of vocabulary."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    template = CLIPTokenizer().backend_tokenizer  # for CLIP's own normalizer and pre-tokenizer
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = template.normalizer, template.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bytes_only = sorted(alphabet) + [f"{byte}</w>" for byte in sorted(alphabet)]
    trainer = BpeTrainer(vocab_size=vocab_size, end_of_word_suffix="</w>", show_progress=False, min_frequency=2)
    bpe.train_from_iterator(captions, trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned["merges"]]
    tokens = list(dict.fromkeys([*bytes_only, *("".join(pair) for pair in merges)]))[: vocab_size - 2]
    kept = set(tokens)
    vocab = {token: i for i, token in enumerate([*tokens, BOS, EOS])}
    merges = [pair for pair in merges if "".join(pair) in kept and kept.issuperset(pair)]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context_length)


def tokenizer_digest(tokenizer: CLIPTokenizer) -> str:
    """sha256, as hex, over all that decides the token ids of a caption."""
    _forget_last_call(tokenizer)
    rest = f"{tokenizer.model_max_length} {sorted(tokenizer.special_tokens_map.items())}"
    return hashlib.sha256(f"{tokenizer.backend_tokenizer.to_str()} {rest}".encode()).hexdigest()


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save it as it was made, without the length and padding of its last call.

    Beside tokenizer.json it writes vocab.json and merges.txt, which is what the class reads in transformers 4.
    """
    _forget_last_call(tokenizer)
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def restore_normalizer(tokenizer: CLIPTokenizer, folder: Path) -> CLIPTokenizer:
    """Give a tokenizer, as it was loaded from a folder, the normalizer of the file there; returns `tokenizer`.

    CLIPTokenizer puts one of its own in its place. They differ where text is cleaned (`text_cleaning`).
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    kept = json.loads(read_text(file))["normalizer"] if file.is_file() else None
    own = json.loads(tokenizer.backend_tokenizer.to_str())
    if kept is not None and kept != own["normalizer"]:
        empty = {**own, "normalizer": kept, "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
        tokenizer.backend_tokenizer.normalizer = Tokenizer.from_str(json.dumps(empty)).normalizer
    return tokenizer


def _forget_last_call(tokenizer: CLIPTokenizer) -> None:
    """transformers keeps the length and padding of a call in the tokenizer, and would save and compare them with it."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def encode(tokenizer: CLIPTokenizer, captions: list[str]) -> Int64[Tensor, "b L"]:
    """Token ids, padded and truncated to the tokenizer's length, as the pipelines of diffusers do."""
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids


class TokenRows:
    """`encode` with a cache: tokenizing is most of the work of a batch of cached latents.

    Args:
        limit: captions kept; the cache is emptied when there are more.
    """

    def __init__(self, tokenizer: CLIPTokenizer, limit: int = 2**15):
        self.tokenizer, self.limit = tokenizer, limit
        self._places: dict[str, int] = {}  # of each caption in `_rows`
        self._rows = np.empty((0, tokenizer.model_max_length), np.int64)

    def __call__(self, captions: list[str]) -> Int64[Tensor, "b L"]:
        if len(self._places) > self.limit:
            self._places.clear()
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._places]
        if new:
            self._add(new)
        return torch.from_numpy(self._rows[[self._places[caption] for caption in captions]])

    def _add(self, new: list[str]) -> None:
        count, rows = len(self._places), encode(self.tokenizer, new).numpy()
        if count + len(new) > len(self._rows):  # twice as many: rows are seldom moved
            self._rows = np.concatenate(
                [self._rows[:count], np.empty_like(rows, shape=(count + 2 * len(new), rows.shape[1]))]
            )
        self._rows[count : count + len(new)] = rows
        self._places.update(zip(new, range(count, count + len(new)), strict=True))
