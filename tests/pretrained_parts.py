"""Tiny autoencoders and CLIP models of random weights, as they lie on the Hub."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from tiny_model import tiny_tokenizer
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

LENGTH = 12  # tokens


def autoencoder(folder: Path, channels: int = 1) -> AutoencoderKL:
    """Factor 2, as stabilityai/sd-vae-ft-mse lies there: config and weights in the root."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    vae.save_pretrained(folder)
    return vae


def clip(folder: Path) -> CLIPModel:
    """Both towers and the tokenizer side by side, as openai/clip-vit-large-patch14; the tokenizer has no length."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        **ends,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    forget_length(folder)
    return model


def forget_length(folder: Path) -> None:
    """As the tokenizers of old, whose settings do not name a length."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("model_max_length")
    path.write_text(json.dumps(settings))


def change(path: Path, **settings) -> None:
    """Change some values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def files(folder: Path, below: str = "") -> dict[str, bytes]:
    """What a repository with the folder in it holds."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {f"{below}{path.relative_to(folder).as_posix()}": path.read_bytes() for path in found}
