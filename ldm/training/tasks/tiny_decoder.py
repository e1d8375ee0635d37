"""`ldm preview-decoder RUN`: a tiny decoder that imitates a finished autoencoder's, for previews during sampling.

Convolutions, ReLU and upsampling alone, trained by regression on what the large decoder gives for the same latents.
It is saved as diffusers' `AutoencoderTiny` in RUN/preview, with `scaling_factor` 1, so it can replace the `vae` of a
diffusers pipeline for decoding: its encoder is minimal and untrained. The class and
the idea are those of TAESD (github.com/madebyollin/taesd); it holds latents to (-3, 3) by 3 tanh(z / 3).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from ldm.config.settings import VaeSettings
from ldm.data import build
from ldm.data.buckets import at_one_size
from ldm.models.autoencoder import load_vae
from ldm.models.latents import posterior, to_model_latents
from ldm.models.reconstruction_losses import edge_loss
from ldm.models.tiny_decoder import build_tiny
from ldm.training.data_order import generator_for, image_batches
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.errors import UserError
from ldm.utils.image_tensors import as_seen, to_images
from ldm.utils.untrusted_files import read_yaml

Latents = Callable[[int], Tensor]  # step -> model latents (B, c, h, w)


def distil(vae, latents: Latents, steps: int, width: int = 32, seed: int = 0, lr: float = 2e-3) -> AutoencoderTiny:
    """Train a tiny decoder to decode as `vae` does: L1 of pixels and of edges, Adam, a cosine learning rate.

    Args:
        vae: frozen, `decode(z).sample` in [-1, 1].
        latents: z to decode in a step, on the device of `vae`; the tiny decoder receives model latents.
    """
    torch.manual_seed(seed)
    tiny = build_tiny(vae, width).to(vae.device).train()
    optimizer = torch.optim.Adam(tiny.decoder.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        z = latents(step)
        with torch.no_grad():
            wanted = vae.decode(z).sample.clamp(-1, 1)
        got, wanted = as_seen(tiny.decode(to_model_latents(z, vae.config)).sample), as_seen(wanted)
        loss = (got - wanted).abs().mean() + edge_loss(got, wanted)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            print(f"step {step + 1}/{steps}  loss {loss.item():.4f}", flush=True)
    return tiny.eval()


@torch.no_grad()
def agreement(vae, tiny: AutoencoderTiny, images: Tensor) -> dict[str, float]:
    """PSNR in dB between the tiny decoder's images and those of `vae`, and milliseconds per image of each."""
    z = posterior(vae, images).mode()
    outputs, milliseconds = [], []
    for decoder, latents in ((vae, z), (tiny, to_model_latents(z, vae.config))):
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            decoded = decoder.decode(latents).sample
            seconds.append(time.perf_counter() - started)
        outputs.append(as_seen(decoded.clamp(-1, 1)))
        milliseconds.append(round(1000 * min(seconds) / len(images), 3))
    error = (outputs[0] - outputs[1]).square().mean((1, 2, 3)).clamp(min=1e-10)
    ratio = (10 * torch.log10(4 / error)).mean().item()
    return {"psnr": round(ratio, 3), "vae_milliseconds": milliseconds[0], "tiny_milliseconds": milliseconds[1]}


def teach(args: argparse.Namespace) -> None:
    """What `ldm preview-decoder` does."""
    for name in ("steps", "batch_size", "width"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(args, name)}")
    vae = load_vae(args.folder)
    if torch.cuda.is_available():
        vae = vae.cuda()
    data = at_one_size(build(_settings(args.folder).data))

    def latents(step: int) -> Tensor:
        generator = generator_for(0, 21, step)
        index = torch.randint(len(data.train), (args.batch_size,), generator=generator).tolist()
        pixels = torch.cat([to_images(data.train.image(i)[None]) for i in index])
        with torch.no_grad():
            q = posterior(vae, pixels.to(vae.device, vae.dtype))
            return q.mean + q.std * torch.randn(q.mean.shape, generator=generator).to(q.mean)

    tiny = distil(vae, latents, args.steps, args.width)
    images = next(image_batches(data.validation, 32, limit=32)).to(vae.device, vae.dtype)
    numbers = agreement(vae, tiny, images)
    with checkpoint.staged(args.folder / "preview") as folder:
        tiny.save_pretrained(folder)
        (folder / "report.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    print(
        f"{args.folder / 'preview'}: {numbers['psnr']:.1f} dB from the autoencoder's own images, "
        f"{numbers['tiny_milliseconds']:.3g} ms an image instead of {numbers['vae_milliseconds']:.3g}"
    )


def _settings(run: Path) -> VaeSettings:
    """The data settings that a run was trained with."""
    content = read_yaml(run / "config.yaml")
    if "data" not in content:
        raise UserError(f"{run} has no config.yaml with a data block: name a run of `ldm train vae` or `ldm train ldm`")
    return VaeSettings(data=content["data"])
