"""CLIP: its loss by hand, retrieval, and shapes that fit."""

import math

import pytest
import torch

from ldm.config.settings import ClipModel
from ldm.models.clip import build_clip, contrastive_loss, encode_images, position_side, recall_at
from ldm.models.tokenizer import train_tokenizer
from ldm.utils.errors import UserError

CAPTIONS = ["horizontal stacked glyph with the water radical", "vertical stacked glyph, meaning forest"] * 20


MODEL = ClipModel(
    vocab_size=600, context_length=16, width=32, layers=2, heads=2, vision_width=32, vision_layers=1, vision_heads=2,
    embed_dim=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, 600, 16)


def test_contrastive_loss_of_orthogonal_features_by_hand():
    n, scale = 4, torch.tensor(3.0)
    ids = torch.arange(n).unsqueeze(1)
    perfect = contrastive_loss(torch.eye(n), torch.eye(n), scale, ids)
    assert perfect.item() == pytest.approx(math.log(1 + (n - 1) * math.exp(-3)), rel=1e-5)
    chance = contrastive_loss(torch.ones(n, 1), torch.ones(n, 1), scale, ids)
    assert chance.item() == pytest.approx(math.log(n), rel=1e-5)


def test_equal_captions_are_equally_right():
    """Two pairs with one caption: the lowest loss is that of telling neither from the other, log 2."""
    ids = torch.zeros(2, 1, dtype=torch.int64)
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


def test_patches_must_tile_the_image(tokenizer):
    with pytest.raises(UserError, match="patch_size"):
        build_clip(MODEL, 36, 1, tokenizer)


def test_patches_must_tile_every_size(tokenizer):
    build_clip(MODEL, 32, 1, tokenizer, [(16, 64), (64, 16)])
    with pytest.raises(UserError, match=r"data.resolution \(16, 36\) must be a multiple of model.patch_size 8"):
        build_clip(MODEL, 32, 1, tokenizer, [(16, 36)])


@pytest.mark.parametrize("resolution, side", [(32, 32), ((16, 64), 32), ((24, 40), 32), ((48, 96), 64)])
def test_position_embeddings_are_of_a_square_of_as_many_pixels(tokenizer, resolution, side):
    clip = build_clip(MODEL, resolution, 1, tokenizer)
    assert clip.vision_model.config.image_size == position_side(resolution, 8) == side


def test_images_of_other_shapes_are_encoded_with_interpolated_positions(tokenizer):
    """Of one colour, and with equal positions, images of as many patches have the same features."""
    tower = build_clip(MODEL, 32, 1, tokenizer).vision_model.eval()
    square = torch.rand(2, 1, 32, 32)
    assert torch.equal(encode_images(tower, square).pooler_output, tower(pixel_values=square).pooler_output)
    with torch.no_grad():
        positions = tower.embeddings.position_embedding.weight
        positions[1:] = positions[1]
        shapes = [(32, 32), (16, 64), (64, 16)]
        features = [encode_images(tower, torch.full((1, 1, *shape), 0.3)).pooler_output for shape in shapes]
    for other in features[1:]:
        torch.testing.assert_close(other, features[0], atol=1e-5, rtol=1e-5)


def test_hard_negatives_by_hand():
    """All orthogonal: log(1 + (n - 1 + m) / e^s) of n images and m wrong texts, and as before of the captions."""
    n, m, s = 3, 5, torch.tensor(2.0)
    features, ids = torch.eye(n + m), torch.arange(n + m).unsqueeze(1)
    found = contrastive_loss(features[:n], features[:n], s, ids[:n], (features[n:], ids[n:]))
    ways = math.log(1 + (n - 1 + m) * math.exp(-2)), math.log(1 + (n - 1) * math.exp(-2))
    assert found.item() == pytest.approx(sum(ways) / 2, rel=1e-5)


def test_a_wrong_text_like_the_right_one_costs_a_bit():
    """Its features are the caption's: log 2 for the image alone."""
    n, s, ids = 4, torch.tensor(60.0), torch.arange(8).unsqueeze(1)
    found = contrastive_loss(torch.eye(n), torch.eye(n), s, ids[:n], (torch.eye(n), ids[n:]))
    assert found.item() == pytest.approx(math.log(2) / 2, rel=1e-5)


def test_a_wrong_text_that_is_the_caption_itself_does_not_count():
    image, text = torch.nn.functional.normalize(torch.randn(2, 5, 7), dim=-1)
    ids, s = torch.arange(5).unsqueeze(1), torch.tensor(10.0)
    plain = contrastive_loss(image, text, s, ids)
    one = contrastive_loss(image[:1], text[:1], s, ids[:1], (text[:1], ids[:1]))
    assert one.item() == pytest.approx(0, abs=1e-6)
    orthogonal = torch.zeros(1, 7), torch.tensor([[9]])
    assert contrastive_loss(image, text, s, ids, orthogonal) > plain and torch.isfinite(plain)
