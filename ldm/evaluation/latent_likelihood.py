"""The autoencoder's terms of a latent model's likelihood."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ldm.diffusion.likelihood import Noise, log_level, log_normal
from ldm.models.latents import posterior, to_model_latents


@dataclass(frozen=True)
class Encoding:
    """A sample z (B, c, h, w) from q(z | x), in model latents, and in nats (B,): ln p(x | z) and -ln q(z | x).

    ln p(x) >= E[ln p(x | z) + ln p(z) - ln q(z | x)], with equality where q is the true posterior.
    """

    latents: Float64[Tensor, "b c h w"]
    log_decoder: Float64[Tensor, " b"]
    surprise: Float64[Tensor, " b"]


@torch.no_grad()
def encode(
    vae: Any, x: Float[Tensor, "b C H W"], std: float, discrete: bool = True, noise: Noise = torch.randn_like
) -> Encoding:
    """The autoencoder's terms of the bound.

    Args:
        vae: an autoencoder with a Gaussian posterior.
        x: images in [-1, 1].
        std: of the decoder as a Gaussian around its image, see `decoder_std`.
        discrete: ln p(x | z) of 256 levels rather than a density.
    """
    q = posterior(vae, x.to(vae.dtype))
    eps = noise(q.mean)
    z = q.mean + q.std * eps
    decoded = vae.decode(z).sample.double()
    latents, scale = to_model_latents(z.double(), vae.config), vae.config["scaling_factor"]
    surprise = 0.5 * (eps.double().square() + math.log(2 * math.pi)) + q.std.double().log() + math.log(scale)
    width = torch.tensor(std, dtype=torch.float64, device=decoded.device)
    per_pixel = (log_level if discrete else log_normal)(x.double(), decoded, width)
    return Encoding(latents, per_pixel.flatten(1).sum(1), surprise.flatten(1).sum(1))


@torch.no_grad()
def decoder_std(vae: Any, x: Float[Tensor, "b C H W"], noise: Noise = torch.randn_like) -> float:
    """The decoder's std of maximum likelihood: the root mean square error of reconstructions from sampled latents."""
    q = posterior(vae, x.to(vae.dtype))
    decoded = vae.decode(q.mean + q.std * noise(q.mean)).sample
    return max(float((x.double() - decoded.double()).square().mean().sqrt()), 1e-4)
