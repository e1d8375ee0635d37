"""Text towers from open_clip: the converted tower and tokenizer compute what open_clip computes.

Random weights throughout: the arithmetic is the same, and nothing is downloaded.
"""

import importlib.util
import json

import pytest

if importlib.util.find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed (extra openclip)", allow_module_level=True)

# first: it makes a mismatched torchvision importable
from ldm.models.open_clip import convert_text_tower, convert_tokenizer, load_text_tower, parse_source  # isort: skip

import open_clip
import torch
from odd_captions import CLEANED
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from ldm.utils.errors import UserError

CAPTIONS = [
    "a horizontal stacked glyph with the water radical",
    "Vertical  stacked GLYPH, it's 12 strokes!",
    "wow !! what's this? (a tree; 50% off) #1",
    "caf\u00e9 na\u00efve \u6c34\u706b\u56fd \u0416\u0434\u0430\u0442\u044c",
    "",
    "many words " * 60,
]
SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 33, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2, "mlp_ratio": 3.0},
}


@pytest.fixture(scope="module")
def vit_b_32():
    torch.manual_seed(0)
    return open_clip.create_model("ViT-B-32").eval()


def small(text=None, custom=False, **top):
    torch.manual_seed(1)
    settings = {**SMALL, **top, "text_cfg": {**SMALL["text_cfg"], **(text or {})}}
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**settings).eval()


def disturbed(model):
    """Every weight made different, also the ones that start as 0 or 1, so that a mix-up shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def states_of(model, tokens):
    """open_clip's hidden states after the final norm (B, L, width), and its text features (B, embed_dim)."""
    tower = getattr(model, "text", model)
    seen = []
    handle = tower.ln_final.register_forward_hook(lambda module, args, output: seen.append(output))
    features = model.encode_text(tokens)
    handle.remove()
    return seen[0], features


@torch.no_grad()
def assert_same(model, tokenizer):
    tokens = tokenizer(CAPTIONS)
    ours = convert_text_tower(model, tokenizer)(input_ids=tokens)
    states, features = states_of(model, tokens)
    torch.testing.assert_close(ours.last_hidden_state, states, atol=1e-5, rtol=0)
    projection = getattr(model, "text", model).text_projection
    torch.testing.assert_close(ours.pooler_output @ projection, features, atol=1e-5, rtol=0)


def test_the_converted_vit_b_32_gives_open_clips_hidden_states(vit_b_32):
    assert_same(disturbed(vit_b_32), open_clip.get_tokenizer("ViT-B-32"))


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_small_tower_gives_the_same_states_with_either_gelu_and_either_class(custom, quick_gelu):
    model = disturbed(small(custom=custom, quick_gelu=quick_gelu))
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=33)
    assert_same(model, tokenizer)
    expected = "quick_gelu" if quick_gelu else "gelu"
    assert convert_text_tower(model, tokenizer).config.hidden_act == expected


@pytest.mark.parametrize("captions", [CAPTIONS, [*CLEANED]], ids=["plain", "odd"])
def test_tokens_are_open_clips_up_to_the_end_token(captions):
    theirs = open_clip.get_tokenizer("ViT-B-32")
    ours = convert_tokenizer(theirs)
    ids = ours(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    expected = theirs(captions)
    assert ids.shape == expected.shape == (len(captions), 77)
    for row, wanted in zip(ids, expected, strict=True):
        end = int((wanted == theirs.eot_token_id).nonzero()[0])
        assert row[: end + 1].tolist() == wanted[: end + 1].tolist()
        assert (row[end:] == ours.pad_token_id).all()


@torch.no_grad()
def test_padding_never_reaches_the_states_before_it():
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=33)
    model = disturbed(small())
    text_model, ours = convert_text_tower(model, tokenizer), convert_tokenizer(tokenizer)
    ids = ours(CAPTIONS[:2], padding="max_length", truncation=True, return_tensors="pt").input_ids
    states, _ = states_of(model, tokenizer(CAPTIONS[:2]))
    for row, found, wanted in zip(ids, text_model(input_ids=ids).last_hidden_state, states, strict=True):
        end = int((row == ours.eos_token_id).nonzero()[0]) + 1
        torch.testing.assert_close(found[:end], wanted[:end], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_stock_classes_keep_the_tower_through_a_save(tmp_path):
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=33)
    text_model, ours = convert_text_tower(disturbed(small()), tokenizer), convert_tokenizer(tokenizer)
    text_model.save_pretrained(tmp_path / "text_encoder")
    ours.save_pretrained(tmp_path / "tokenizer")
    again = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    words = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = words(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.equal(ours(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt").input_ids)
    torch.testing.assert_close(again(input_ids=ids)[0], text_model(input_ids=ids)[0], atol=0, rtol=0)


def write_folder(folder, model, config):
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))


@torch.no_grad()
def test_a_local_folder_comes_back_as_it_was(tmp_path):
    model = disturbed(small())
    write_folder(tmp_path / "clip", model, SMALL)
    text_model, tokenizer = load_text_tower(f"open_clip:local-dir:{tmp_path / 'clip'}")
    assert tokenizer.model_max_length == 33 and not text_model.training
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=33)(CAPTIONS)
    states, _ = states_of(model, tokens)
    torch.testing.assert_close(text_model(input_ids=tokens).last_hidden_state, states, atol=1e-5, rtol=0)


def test_a_folder_that_is_missing_broken_or_without_weights_is_one_readable_error(tmp_path):
    with pytest.raises(UserError, match="not found"):
        load_text_tower(f"open_clip:local-dir:{tmp_path / 'nowhere'}")
    write_folder(tmp_path / "clip", small(), SMALL)
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load"):
        load_text_tower(f"open_clip:local-dir:{tmp_path / 'clip'}")
    (tmp_path / "clip" / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match="model_cfg"):
        load_text_tower(f"open_clip:local-dir:{tmp_path / 'clip'}")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("ViT-B-32/openai", "must be one of open_clip:ARCH/TAG"),
        ("open_clip:ViT-B-33/openai", "unknown architecture 'ViT-B-33'; nearest: ViT-B-32"),
        ("open_clip:ViT-B-32/opnai", "unknown weights tag of ViT-B-32 'opnai'; nearest: openai"),
        ("open_clip:ViT-B-32/", "unknown weights tag of ViT-B-32 ''"),
        ("open_clip:ViT-B-32", "unknown weights tag of ViT-B-32 ''"),
        ("open_clip:local-dir:", "names nothing after 'local-dir:'"),
    ],
)
def test_a_wrong_source_is_answered_with_what_is_allowed(source, words):
    with pytest.raises(UserError, match=words):
        parse_source(source)


def test_a_good_source_is_split_in_two():
    assert parse_source("open_clip:ViT-B-32/laion2b_s34b_b79k") == ("ViT-B-32", "laion2b_s34b_b79k")
    assert parse_source("open_clip:hf-hub:user/name") == ("hf-hub:user/name", None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"no_causal_mask": True}, "not causal"),
        ({"embed_cls": True}, "class token"),
        ({"ls_init_value": 0.1}, "scales its layers"),
        ({"qk_norm": True}, "of another type"),
        ({"pool_type": "last"}, "pools at 'last'"),
    ],
)
def test_towers_that_compute_something_else_are_refused(text, reason):
    model = small(text, custom=True)
    with pytest.raises(UserError, match=reason):
        convert_text_tower(model, open_clip.tokenizer.SimpleTokenizer(context_length=33))


def test_foreign_towers_and_tokenizers_are_refused():
    with pytest.raises(UserError, match="no CLIP text transformer"):
        convert_text_tower(torch.nn.Linear(2, 2), open_clip.tokenizer.SimpleTokenizer())
    with pytest.raises(UserError, match="cleans or shortens"):
        convert_tokenizer(open_clip.tokenizer.SimpleTokenizer(clean="canonicalize"))
    with pytest.raises(UserError, match="byte-pair"):
        convert_tokenizer(object())
