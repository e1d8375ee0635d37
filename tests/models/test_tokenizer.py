"""The tokenizer: nothing is out of vocabulary, and rows are padded and truncated."""

import pytest
import torch
from transformers import CLIPTokenizer

from ldm.models.tokenizer import TokenRows, encode, train_tokenizer

CAPTIONS = ["horizontal stacked glyph with the water radical", "vertical stacked glyph, meaning forest"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, 600, 16)


def test_trained_words_become_few_tokens_and_nothing_is_unknown(tokenizer):
    assert len(tokenizer) <= 600
    assert tokenizer.tokenize("water glyph") == ["water</w>", "glyph</w>"]
    strange = "Zürich 水 \U0001f600 !?"
    ids = tokenizer(strange).input_ids[1:-1]
    assert tokenizer.eos_token_id not in ids and len(ids) > 8  # bytes, not the unknown mark
    assert tokenizer.decode(ids).replace(" ", "") == strange.lower().replace(" ", "")


def test_tokens_survive_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again.model_max_length == 16
    assert torch.equal(encode(again, CAPTIONS[:2] + [""]), encode(tokenizer, CAPTIONS[:2] + [""]))


def test_encoding_pads_and_cuts_to_the_context(tokenizer):
    ids = encode(tokenizer, ["", "water " * 50])
    assert ids.shape == (2, 16)
    assert ids[0].tolist() == [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * 15
    assert ids[1, -1] == tokenizer.eos_token_id


def test_remembered_rows_are_those_of_encoding(tokenizer, monkeypatch):
    rows, asked = TokenRows(tokenizer, limit=2), []
    monkeypatch.setattr(
        "ldm.models.tokenizer.encode", lambda _, captions: asked.append(captions) or encode(tokenizer, captions)
    )
    for captions in (["water", "fire", "water"], ["fire", ""], ["water", "glyph"], ["water", "fire"]):
        assert torch.equal(rows(captions), encode(tokenizer, captions))
    assert asked == [["water", "fire"], [""], ["water", "glyph"], ["fire"]]  # over the limit, all were forgotten
