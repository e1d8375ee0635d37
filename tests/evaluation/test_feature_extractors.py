"""Judges from elsewhere: a CLIP made so that its answers are known, and a vision model of transformers' own."""

import json

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from ldm.config.settings import ClipModel
from ldm.evaluation.feature_extractors import ClipEmbedder, VisionModel, coarse_colours
from ldm.models.clip import build_clip
from ldm.models.tokenizer import train_tokenizer
from ldm.utils.errors import UserError
from ldm.utils.transparency import on_grounds

CAPTIONS = ["horizontal stacked glyph", "vertical stacked glyph", "single glyph"]


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = ClipModel(vocab_size=560, context_length=8, width=16, layers=1, heads=2, vision_width=16, vision_layers=1,
                      vision_heads=2, embed_dim=8)  # fmt: skip
    tokenizer = train_tokenizer(CAPTIONS, 560, 8)
    build_clip(small, 16, 1, tokenizer).save_pretrained(run / "final" / "clip")
    tokenizer.save_pretrained(run / "final" / "tokenizer")
    return run


def test_both_towers_give_unit_features_that_tell_pictures_and_prompts_apart(clip_run):
    judge = ClipEmbedder(clip_run)
    images = np.random.default_rng(0).integers(0, 256, (70, 16, 16), dtype=np.uint8)
    prompts = [CAPTIONS[i % 3] for i in range(70)]
    image, text = judge(images, prompts)
    assert image.shape == text.shape == (70, 8)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(70))
    assert torch.equal(text[0], text[3]) and not torch.allclose(text[0], text[1])
    torch.testing.assert_close(judge(images[65:], prompts[65:])[0], image[65:])  # whatever the batch
    torch.testing.assert_close(judge(images[..., None], prompts)[0], image)
    larger = np.repeat(np.repeat(images[:2], 2, 1), 2, 2)
    assert ((judge(larger, prompts[:2])[0] * image[:2]).sum(1) > 0.97).all()  # scaled down as a picture is
    assert len(judge.digest) == 16


def test_transparent_images_are_seen_on_black_and_on_white(clip_run):
    judge, rng = ClipEmbedder(clip_run), np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 16, 16, 4), dtype=np.uint8)
    black, white = on_grounds(images)
    for embed in (judge.embed, coarse_colours):
        np.testing.assert_array_equal(embed(images), np.concatenate([embed(black), embed(white)], axis=1))
    prompts = CAPTIONS[:1] * 5
    image, text = judge(images, prompts)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(5))
    both = sum(judge(part, prompts)[0] for part in (black, white))
    torch.testing.assert_close(image, both / both.norm(dim=1, keepdim=True))
    torch.testing.assert_close(text, judge(black, prompts)[1])


def test_an_encoder_that_takes_alpha_sees_it_and_no_hidden_colours(tmp_path):
    torch.manual_seed(0)
    small = ClipModel(vocab_size=560, context_length=8, width=16, layers=1, heads=2, vision_width=16, vision_layers=1,
                      vision_heads=2, embed_dim=8)  # fmt: skip
    tokenizer = train_tokenizer(CAPTIONS, 560, 8)
    build_clip(small, 16, 4, tokenizer).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    judge = ClipEmbedder(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 4), dtype=np.uint8)
    images[:, :8, :, 3] = 0
    other = images.copy()
    other[:, :8, :, :3] = 255 - other[:, :8, :, :3]
    assert judge.embed(images).shape == (3, 8)
    np.testing.assert_allclose(judge.embed(images), judge.embed(other), atol=1e-5)
    torch.testing.assert_close(judge(images, CAPTIONS)[0], judge(other, CAPTIONS)[0])
    large = np.repeat(np.repeat(other, 2, 1), 2, 2)  # scaled down, hidden colours do not bleed into what is seen
    np.testing.assert_allclose(judge.embed(large), judge.embed(np.repeat(np.repeat(images, 2, 1), 2, 2)), atol=1e-5)
    opaque = images.copy()
    opaque[..., 3] = 255
    np.testing.assert_allclose(judge.embed(opaque), judge.embed(opaque[..., :3]), atol=1e-5)
    assert np.abs(judge.embed(opaque) - judge.embed(images)).max() > 1e-3


def test_a_folder_without_clip_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no clip/"):
        ClipEmbedder(tmp_path)


def test_features_of_a_vision_model_are_those_that_transformers_gives(tmp_path):
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    torch.manual_seed(0)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    settings = {"size": {"height": 28, "width": 28}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    mean, deviation = (torch.tensor(settings[name])[:, None, None] for name in ("image_mean", "image_std"))
    pixels = (torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1) / 255 - mean) / deviation
    with torch.no_grad():
        direct = model(pixel_values=pixels).pooler_output
    np.testing.assert_allclose(VisionModel(str(tmp_path)).embed(images), direct.numpy(), atol=1e-5)


def test_what_sees_no_pictures_is_refused(tmp_path, clip_run):
    with pytest.raises(UserError, match="no vision model"):
        VisionModel(str(tmp_path))
    judge = ClipEmbedder(clip_run)
    judge.clip.text_model.config.save_pretrained(tmp_path)
    with pytest.raises(UserError):
        VisionModel(str(tmp_path))
