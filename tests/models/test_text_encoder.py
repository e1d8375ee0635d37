"""Tokenizer, contrastive loss and retrieval against what they must be."""

import pytest
import torch
from transformers import CLIPTextModel

from ldm.config.settings import ClipModel
from ldm.models.clip import build_clip
from ldm.models.text_encoder import load_text, null_text_encoder, text_tower
from ldm.models.tokenizer import encode, train_tokenizer
from ldm.utils.errors import UserError

CAPTIONS = ["horizontal stacked glyph with the water radical", "vertical stacked glyph, meaning forest"] * 20
MODEL = ClipModel(
    vocab_size=600, context_length=16, width=32, layers=2, heads=2, vision_width=32, vision_layers=1, vision_heads=2,
    embed_dim=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, 600, 16)


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


def test_the_null_text_is_the_same_everywhere():
    (first, tokens), (second, _) = null_text_encoder(), null_text_encoder()
    states = [model(encode(tokens, [""])).last_hidden_state for model in (first, second)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_missing_text_encoder_is_named(tmp_path):
    with pytest.raises(UserError, match="`ldm train clip` first"):
        load_text(tmp_path)
