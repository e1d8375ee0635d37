"""An `AutoencoderTiny` whose encoder is linear and exact, and whose decoder is learned: for glyphs of 128 px, f8.

    python scripts/linear_autoencoder.py OUT --minutes 40

The encoder projects patches of 8 x 8 pixels on their principal components, whitened by half (standard deviations
divided by their square root, mean variance 1), and is never trained: diffusers' `AutoencoderTiny` holds it exactly, in
convolutions of stride 2 that gather 2 x 2 pixels each and a last one that projects. Latents need no training, and so
cannot drift while the decoder learns.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from ldm.config.settings import DataOptions
from ldm.data import ImageTextData, build, evenly_spaced_indices
from ldm.utils.image_tensors import to_images

PATCH, LEVELS = 8, 4  # 2 ** (LEVELS - 1) = PATCH
FITTED, HELD, CROP, BATCH = 2000, 200, 64, 16
NOISE = 0.1  # most of the noise on the latents that the decoder learns from: the U-Net's are not perfect


def batch_of(data: ImageTextData, indices) -> Tensor:
    """float32 (n, c, h, w) in [-1, 1]."""
    return to_images(np.stack([data.image(int(i)) for i in indices]))


def principal_patches(images: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Weights (channels, PATCH ** 2) and biases (channels,) of the whitened projection of grey images (n, 1, h, w)."""
    patches = F.unfold(images, PATCH, stride=PATCH).permute(0, 2, 1).flatten(0, 1).double()
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    values, vectors = values.flip(0)[:channels], vectors.flip(1)[:, :channels]
    halved = values**-0.25  # deviation s becomes s ** 0.5
    weights = (vectors * halved).T / values.sqrt().mean().sqrt()
    return weights.float(), (-weights @ mean).float()


@torch.no_grad()
def hold_projection(vae: AutoencoderTiny, weights: Tensor, biases: Tensor) -> None:
    """Put a projection of patches into the encoder, exactly; it halves pixels to [0, 1] first."""
    convs = [layer for layer in vae.encoder.layers if isinstance(layer, torch.nn.Conv2d)]
    for conv in convs:
        torch.nn.init.zeros_(conv.weight)
        if conv.bias is not None:
            torch.nn.init.zeros_(conv.bias)
    convs[0].weight[0, 0, 1, 1] = 1
    for level, conv in enumerate(convs[1:-1]):
        for k in range(4**level):
            for place in range(4):
                conv.weight[4 * k + place, k, 1 + place // 2, 1 + place % 2] = 1
    for y in range(PATCH):
        for x in range(PATCH):
            digits = [(y >> level & 1) * 2 + (x >> level & 1) for level in range(LEVELS - 1)]
            convs[-1].weight[:, digits[0] * 16 + digits[1] * 4 + digits[2], 1, 1] = 2 * weights[:, y * PATCH + x]
    convs[-1].bias.copy_(biases - weights.sum(1))


def new_autoencoder(channels: int, width: int) -> AutoencoderTiny:
    return AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        encoder_block_out_channels=(PATCH**2,) * LEVELS,
        num_encoder_blocks=(0,) * LEVELS,
        decoder_block_out_channels=(width,) * LEVELS,
        num_decoder_blocks=(3, 2, 1, 0),
        latent_channels=channels,
    )


@torch.no_grad()
def psnr(vae: AutoencoderTiny, images: Tensor) -> Tensor:
    """(n,), dB; the images' range is [-1, 1]."""
    shown = torch.cat([vae.decode(vae.encode(part).latents).sample for part in images.split(16)]).clamp(-1, 1)
    return -10 * ((shown - images) / 2).square().flatten(1).mean(1).log10()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"))
    asked = parser.parse_args()
    torch.manual_seed(0)
    data = build(DataOptions(resolution=128, cache_dir=asked.cache_dir))
    vae = new_autoencoder(asked.channels, asked.width)
    hold_projection(
        vae, *principal_patches(batch_of(data.train, evenly_spaced_indices(len(data.train), FITTED)), asked.channels)
    )
    held = batch_of(data.validation, evenly_spaced_indices(len(data.validation), HELD))
    styles = np.array([data.validation.ids[i].split("/")[1] for i in evenly_spaced_indices(len(data.validation), HELD)])
    train(vae, data.train, asked.minutes * 60, lambda: report(vae, held, styles, asked.out))


def report(vae: AutoencoderTiny, held: Tensor, styles: np.ndarray, out: Path) -> None:
    values = psnr(vae, held).numpy()
    vae.save_pretrained(out)
    print({style: round(float(values[styles == style].mean()), 2) for style in sorted(set(styles))}, flush=True)


def train(vae: AutoencoderTiny, data: ImageTextData, seconds: float, look) -> None:
    rng, began, looked, step = np.random.default_rng(0), time.time(), time.time(), 0
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0)
    while (gone := (time.time() - began) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50, 2.5 * (1 - gone))
        y, x = 8 * rng.integers(0, (128 - CROP) // 8 + 1, 2)
        images = batch_of(data, rng.integers(len(data), size=BATCH))[:, :, y : y + CROP, x : x + CROP]
        with torch.no_grad():
            latents = vae.encode(images).latents
            latents += NOISE * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(latents)
        error = vae.decode(latents).sample - images
        loss = error.abs().mean() + error.square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 100 == 0:
            print(step, round(loss.item(), 4), round(time.time() - began), flush=True)
        if time.time() - looked > 300:
            look()
            looked = time.time()
    look()


if __name__ == "__main__":
    main()
