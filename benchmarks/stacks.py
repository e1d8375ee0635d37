"""The models and pictures that benchmarks measure: stock classes with random weights, and synthetic photos.

Speed does not depend on what weights have learned, so nothing is fetched. Two stacks share a U-Net of 34.9 M
parameters for 4 x 16 x 16 latents and a CLIP text tower; their autoencoders (f = 8) bracket the ratio of encoding to
denoising of Stable Diffusion: `light` (5.3 M) costs 0.30 of a U-Net training step to encode, `heavy` (20.9 M) 1.2.
"""

import json
import shutil
from pathlib import Path

import numpy as np

RESOLUTION = 128
STACKS = {"light": (32, 64, 128, 128), "heavy": (64, 128, 256, 256)}  # widths of the autoencoder
UNET = {
    "sample_size": 16,
    "block_out_channels": (128, 256, 256),
    "layers_per_block": 2,
    "cross_attention_dim": 256,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
}
WORDS = ("red", "green", "small", "large", "old", "quiet", "house", "river", "cat", "mountain", "boat", "garden")


def build_autoencoder(stack: str):
    from diffusers import AutoencoderKL

    levels = len(STACKS[stack])
    return AutoencoderKL(
        block_out_channels=STACKS[stack],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        latent_channels=4,
        sample_size=RESOLUTION,
    )


def build_unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**UNET)


def write_stack(folder: Path, stack: str) -> Path:
    """A whole text-to-image model in the stock folder layout, the same for everyone; kept if it is there already."""
    if (folder / "model_index.json").exists():
        return folder
    import torch
    from diffusers import DDPMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    from ldm.models.tokenizer import train_tokenizer

    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    tokenizer = train_tokenizer([caption(i) for i in range(512)], vocab_size=1024, context_length=77)
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDPMScheduler(**betas, clip_sample=False, steps_offset=1)
    StableDiffusionPipeline(
        vae=build_autoencoder(stack),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT, **marks, pad_token_id=tokenizer.eos_token_id)),
        tokenizer=tokenizer,
        unet=build_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def caption(i: int) -> str:
    rng = np.random.default_rng([1, i])
    return f"a photo of a {' '.join(rng.choice(WORDS, 4, replace=False))} number {i}"


def write_pictures(folder: Path, count: int = 512, size: int = 256) -> Path:
    """JPEGs with the spectrum of photos and metadata.jsonl with a caption each; kept if they are there already."""
    table = folder / "metadata.jsonl"
    if table.exists() and len(table.read_text().splitlines()) == count:
        return folder
    from PIL import Image

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij")) + 1 / size
    for i in range(count):
        noise = np.random.default_rng([0, i]).standard_normal((3, size, size))
        field = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.2, s=(size, size))
        levels = 127.5 + 50 * field / field.std(axis=(1, 2), keepdims=True)
        pixels = levels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{i:05d}.jpg", quality=90)
    table.write_text(
        "".join(json.dumps({"file_name": f"{i:05d}.jpg", "text": caption(i)}) + "\n" for i in range(count))
    )
    return folder


def ldm_settings(model: Path, pictures: Path, run: Path, *, cache: Path | None = None, data=None, **train):
    """Settings of our trainer for the peer's task: eps-prediction, uniform times, AdamW at a constant rate, EMA.

    Args:
        data: further keys of the data settings.
        train: keys of the training settings.
    """
    from ldm.config.settings import LdmSettings

    options = {"source": str(pictures), "resolution": RESOLUTION, "channels": 3, "cache_dir": cache or run / "cache"}
    noise = {"process": "scaled_linear", "prediction_type": "epsilon", "timesteps": "uniform", "stratified": False}
    optim = {"lr": 1e-4, "betas": (0.9, 0.999), "warmup_steps": 0, "schedule": "constant"}
    quiet = {"sample_every": 0, "save_every": 10**6, "log_every": 10**6, "report_to": ["none"], "ema_decay": 0.9999}
    return LdmSettings(
        output_dir=run,
        vae=str(model / "vae"),
        text={"source": str(model)},
        data=options | {"files": {"validation_fraction": 0.0}} | (data or {}),
        noise=noise,
        optim=optim,
        caption_dropout=0.0,
        train=quiet | train,
    )
