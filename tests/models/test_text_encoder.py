"""Tokenizer, contrastive loss and retrieval against what they must be."""

import math

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from ldm.config.settings import ClipModel
from ldm.models.clip import build_clip, contrastive_loss, recall_at
from ldm.models.text_encoder import load_text, null_text_encoder, text_tower
from ldm.models.tokenizer import TokenRows, encode, train_tokenizer
from ldm.training.tasks.clip import run_tokenizer
from ldm.utils.errors import UserError

CAPTIONS = ["horizontal stacked glyph with the water radical", "vertical stacked glyph, meaning forest"] * 20
MODEL = ClipModel(
    vocab_size=600, context_length=16, width=32, layers=2, heads=2, vision_width=32, vision_layers=1, vision_heads=2,
    embed_dim=16,
)  # fmt: skip


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


def test_contrastive_loss_of_orthogonal_features_by_hand():
    n, scale = 4, torch.tensor(3.0)
    ids = torch.arange(n).unsqueeze(1)
    perfect = contrastive_loss(torch.eye(n), torch.eye(n), scale, ids)
    assert perfect.item() == pytest.approx(math.log(1 + (n - 1) * math.exp(-3)), rel=1e-5)
    chance = contrastive_loss(torch.ones(n, 1), torch.ones(n, 1), scale, ids)
    assert chance.item() == pytest.approx(math.log(n), rel=1e-5)


def test_equal_captions_are_equally_right():
    """Two pairs with one caption: the lowest loss is that of telling neither from the other, log 2."""
    ids = torch.zeros(2, 1)
    assert contrastive_loss(torch.ones(2, 1), torch.ones(2, 1), torch.tensor(5.0), ids).item() == pytest.approx(
        math.log(2)
    )
    different = contrastive_loss(torch.eye(2), torch.eye(2), torch.tensor(5.0), ids)
    assert different.item() > math.log(2)


def test_recall_counts_ranks():
    image = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 3]), 4).float()
    text = image[[0, 1, 3, 2]]  # two right, two swapped
    found = recall_at(image, text, ks=(1, 4))
    assert found["text_to_image_recall@1"] == 0.5 and found["text_to_image_recall@4"] == 1.0
    assert recall_at(torch.ones(10, 2), torch.ones(10, 2))["text_to_image_recall@1"] == 0.0  # ties are not hits


def test_the_tower_alone_is_the_tower_in_clip(tokenizer, tmp_path):
    torch.manual_seed(0)
    clip = build_clip(MODEL, 32, 1, tokenizer).eval()
    ids = encode(tokenizer, CAPTIONS[:2] + [""])
    text_tower(clip).save_pretrained(tmp_path / "text_encoder")
    alone = CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()
    with torch.no_grad():
        inside = clip.text_model(input_ids=ids)
        outside = alone(input_ids=ids)
    torch.testing.assert_close(outside.last_hidden_state, inside.last_hidden_state)
    torch.testing.assert_close(outside.pooler_output, inside.pooler_output)


class Captioned:
    """Twenty items with one of two captions."""

    def __len__(self):
        return 20

    def caption(self, i, rng):
        return CAPTIONS[i % 2]


def test_a_run_keeps_its_first_tokenizer(tmp_path):
    first = run_tokenizer(tmp_path, MODEL, Captioned(), 0)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    CAPTIONS.append("something else entirely " * 3)
    again = run_tokenizer(tmp_path, MODEL, Captioned(), 0)
    assert again.get_vocab() == first.get_vocab()


def test_patches_must_tile_the_image(tokenizer):
    with pytest.raises(UserError, match="patch_size"):
        build_clip(MODEL, 36, 1, tokenizer)


def test_the_null_text_is_the_same_everywhere():
    (first, tokens), (second, _) = null_text_encoder(), null_text_encoder()
    states = [model(encode(tokens, [""])).last_hidden_state for model in (first, second)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_missing_text_encoder_is_named(tmp_path):
    with pytest.raises(UserError, match="train_clip.py first"):
        load_text(tmp_path)
