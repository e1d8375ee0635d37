"""diffusers' `train_autoencoderkl`, retold: its loop over networks of its structure, with random weights.

The script needs LPIPS's trained VGG and a discriminator from another package; neither is to be had offline. Speed does
not depend on weights, so both are built here as those packages build them and left as they are drawn.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VGG = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))


class VggDistance(nn.Module):
    """LPIPS's structure: VGG-16 features of both images at five depths, normalised, differences weighted by channel."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in itertools.pairwise(w)))
            for w in VGG
        )
        self.weights = nn.ModuleList(nn.Conv2d(widths[-1], 1, 1, bias=False) for widths in VGG)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total = x.new_zeros(())
        for level, (stage, weight) in enumerate(zip(self.stages, self.weights)):
            x, y = (stage(F.max_pool2d(image, 2) if level else image) for image in (x, y))
            difference = (F.normalize(x, dim=1, eps=1e-10) - F.normalize(y, dim=1, eps=1e-10)).square()
            total = total + weight(difference).mean((2, 3), keepdim=True)
        return total


def patch_discriminator() -> nn.Module:
    """PatchGAN of three strided layers and 64 to 512 channels, with batch norm, as pix2pix and VQGAN have it."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2)]
    for inputs, outputs, stride in ((64, 128, 2), (128, 256, 2), (256, 512, 1)):
        layers += [
            nn.Conv2d(inputs, outputs, 4, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2),
        ]  # fmt: skip
    return nn.Sequential(*layers, nn.Conv2d(512, 1, 4, 1, 1))


def retold(
    stack: str, pictures: Path, batch_size: int, precision: str, disc_start: int, own_vae=None, resolution: int = 128
) -> Callable:
    """The loop with the script's defaults; from `disc_start` on, every second step is the discriminator's.

    Args:
        own_vae: the autoencoder to train; None = that of `stack`.
    """

    def run(pause: Callable[[], None]) -> None:
        from accelerate import Accelerator
        from accelerate.utils import set_seed
        from diffusers.optimization import get_scheduler
        from peer_training import Photos
        from stacks import build_autoencoder
        from torch.utils.data import DataLoader

        accelerator = Accelerator(mixed_precision=precision)
        set_seed(0)
        vae = (build_autoencoder(stack) if own_vae is None else own_vae).train()
        critic, distance = patch_discriminator(), VggDistance().eval()
        distance.requires_grad_(False).to(accelerator.device)
        rate = {"lr": 4.5e-6, "betas": (0.9, 0.999), "weight_decay": 1e-2}
        optimizers = [torch.optim.AdamW(module.parameters(), **rate) for module in (vae, critic)]
        rates = [get_scheduler("constant", optimizer) for optimizer in optimizers]
        loader = DataLoader(Photos(pictures, None, resolution), batch_size, shuffle=True, drop_last=True)
        vae, critic, *optimizers, loader = accelerator.prepare(vae, critic, *optimizers, loader)
        step = 0
        while True:
            for targets in loader:
                posterior = vae.encode(targets).latent_dist
                images = vae.decode(posterior.sample()).sample
                generator = step % 2 == 0 or step < disc_start
                if generator:
                    loss = generator_loss(vae, critic, distance, posterior, images, targets, step >= disc_start)
                else:
                    loss = (F.relu(1 - critic(targets)).mean() + F.relu(1 + critic(images)).mean()) / 2
                    loss.detach().mean().item()
                which = 0 if generator else 1
                accelerator.backward(loss)
                accelerator.clip_grad_norm_((vae, critic)[which].parameters(), 1.0)
                optimizers[which].step()
                rates[which].step()
                optimizers[which].zero_grad()
                step += 1
                pause()

    return run


def generator_loss(vae, critic, distance, posterior, images: Tensor, targets: Tensor, adversarial: bool) -> Tensor:
    """The script's: squared error, a perceptual term outside the graph, KL, and the critic's, weighed by gradients."""
    with torch.no_grad():
        perceptual = distance(images, targets)
    pixels = F.mse_loss(images.float(), targets.float(), reduction="none") + 0.5 * perceptual
    reconstruction, kl = pixels.sum() / len(pixels), posterior.kl().sum() / len(pixels)
    judged = -critic(images).mean()
    last = vae.decoder.conv_out.weight
    ours, theirs = (torch.autograd.grad(each, last, retain_graph=True)[0] for each in (reconstruction, judged))
    weight = (ours.norm() / (theirs.norm() + 1e-4)).clamp(0, 1e4).detach()
    loss = reconstruction + 1e-6 * kl + weight * float(adversarial) * judged
    for value in (loss, reconstruction, pixels, perceptual, kl, weight, judged):  # its log line, read in each step
        value.detach().mean().item()
    return loss
