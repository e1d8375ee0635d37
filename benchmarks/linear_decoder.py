"""What the decoder of a linear autoencoder reaches in some CPU seconds, by latents, width, optimizer and clamp.

    python benchmarks/linear_decoder.py my-images --seconds 60 --optimizer muon --lr 3e-3

One arm a call, one thread: AutoencoderTiny with the principal components of 4 x 4 patches, random crops, L1 and squared
error, rate falling over the last half. Prints PSNR on validation images four times, beside that of the components
alone.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from ldm.config.settings import DataOptions, OptimOptions
from ldm.data import Splits, build
from ldm.models.latents import posterior
from ldm.models.linear_autoencoder import build_linear, fit_encoder, pca_psnr
from ldm.training.data_order import image_batches
from ldm.training.optimizer import build_optimizer
from ldm.utils.image_tensors import to_images

FACTOR, FITTED, HELD_OUT, NOISE = 4, 2000, 200, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of images")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--latents", type=int, default=12)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--crop", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--scale", type=float, help="scaling factor; 1 = latents of unit variance reach the clamp")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = build(DataOptions(source=args.source, channels=3, cache_dir=args.cache_dir))
    splits = (data.train, FITTED), (data.validation, HELD_OUT)
    train, held_out = (torch.cat([*image_batches(split, limit=limit)]) for split, limit in splits)
    print(f"principal components alone: {pca_psnr(train, held_out, FACTOR, args.latents):.2f} dB")
    torch.manual_seed(0)
    vae = build_linear(3, FACTOR, args.latents, args.width, args.blocks)
    vae.register_to_config(scaling_factor=args.scale or vae.config.scaling_factor)
    fit_encoder(vae, train.split(64))
    learn(vae, data, held_out, args)


def learn(vae: AutoencoderTiny, data: Splits, held_out: Tensor, args: argparse.Namespace) -> None:
    rng, began, looked, step = np.random.default_rng(0), time.process_time(), 0.0, 0
    optimizer = build_optimizer(vae, OptimOptions(name=args.optimizer, lr=args.lr, weight_decay=0))
    rates = [group["lr"] for group in optimizer.param_groups]
    measuring = 0.0
    while (gone := (time.process_time() - began - measuring) / args.seconds) < 1:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (step + 1) / 50, 2 * (1 - gone))
        loss = loss_of(vae, batch(data, rng, args), rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if gone > looked + 0.25:
            at, looked = time.process_time(), looked + 0.25
            print(f"{looked:.0%}, step {step}: {psnr(vae, held_out):.2f} dB", flush=True)
            measuring += time.process_time() - at
    print(f"end, step {step}: {psnr(vae, held_out):.2f} dB")


def batch(data: Splits, rng: np.random.Generator, args: argparse.Namespace) -> Tensor:
    top, left = rng.integers(0, data.train.resolution - args.crop + 1, 2)
    pixels = np.stack([data.train.image(int(i)) for i in rng.integers(len(data.train), size=args.batch)])
    return to_images(pixels[:, top : top + args.crop, left : left + args.crop])


def loss_of(vae: AutoencoderTiny, images: Tensor, rng: np.random.Generator) -> Tensor:
    with torch.no_grad():
        latents = posterior(vae, images).mean
        noise = NOISE / vae.config.scaling_factor * rng.random((len(images), 1, 1, 1), np.float32)
        latents = latents + torch.from_numpy(noise) * torch.randn_like(latents)
    error = vae.decode(latents).sample - images
    return error.abs().mean() + error.square().mean()


@torch.no_grad()
def psnr(vae, images: Tensor) -> float:
    """Mean over images in [-1, 1], dB."""
    decoded = torch.cat([vae.decode(posterior(vae, part).mean).sample for part in images.split(32)]).clamp(-1, 1)
    return (10 * torch.log10(4 / (decoded - images).square().flatten(1).mean(1))).mean().item()


if __name__ == "__main__":
    main()
