"""A linear encoder and a small learned decoder, as diffusers' `AutoencoderTiny`.

The encoder projects patches of f x f pixels on their principal components. It is computed, not trained: colours are
right from the start, latents do not drift while the decoder learns, and no other linear map with as many numbers
loses less (Eckart and Young 1936). Deviations of the components are replaced by their square roots, and all are
scaled to a mean variance of 1: fully whitened, the many small ones would need as much of the denoiser as the few
large ones.
"""

from collections.abc import Iterable

import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from ldm.models.latents import downsampling_factor, encoder_input
from ldm.models.patch_projection import hold_projection

FITTED_PIXELS = 2**23  # of the images that components are computed from: more hardly change them
WHITENING = 0.5  # a component of deviation s gets s ** (1 - WHITENING); 1 = white
SCALE = 2.5  # the decoder squashes z by 3 tanh(z / 3): smaller numbers pass nearly unchanged, 0.8 dB better
LEAST = 1e-6  # variance of a component, in squared units of [-1, 1], below which the data do not have it


def build_linear(channels: int, factor: int, latent_channels: int, width: int, blocks: int) -> AutoencoderTiny:
    """Untrained; the encoder is frozen, and empty until `fit_encoder`.

    Images (b, channels, H, W) have latents (b, latent_channels, H / factor, W / factor).

    Args:
        width: of the decoder, at all levels. blocks: residual blocks at the coarsest level, one fewer at each finer.
    """
    levels = factor.bit_length()
    vae = AutoencoderTiny(
        in_channels=channels,
        out_channels=channels,
        latent_channels=latent_channels,
        encoder_block_out_channels=(channels * factor**2,) * levels,
        num_encoder_blocks=(0,) * levels,
        decoder_block_out_channels=(width,) * levels,
        num_decoder_blocks=tuple(max(0, blocks - level) for level in range(levels)),
        scaling_factor=SCALE,
    )
    vae.encoder.requires_grad_(False)
    return vae


def principal_patches(
    batches: Iterable[Float[Tensor, "_ c h w"]], factor: int, channels: int
) -> tuple[Float64[Tensor, " k"], Float64[Tensor, "k d"], Float64[Tensor, " d"]]:
    """Variances (falling), unit directions and mean of the first `channels` principal components of patches.

    Args:
        batches: of images in [-1, 1]; only one is held at a time. A patch has d = c factor^2 numbers, ordered as
            `torch.nn.functional.unfold` does.

    Raises: ValueError if a patch has fewer numbers than `channels`.
    """
    count, first, second = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for images in batches:
        if channels > (total := images.shape[1] * factor**2):
            raise ValueError(f"a patch of {images.shape[1]} x {factor} x {factor} has {total} numbers, not {channels}")
        patches = _patches(images, factor).flatten(0, 1)
        count, first, second = count + len(patches), first + patches.sum(0), second + patches.T @ patches
    mean = first / count
    variances, directions = torch.linalg.eigh(second / count - mean.outer(mean))
    return variances.flip(0)[:channels].clamp(min=0), directions.flip(1)[:, :channels].T, mean


def _patches(images: Tensor, factor: int) -> Tensor:
    """(n, patches, c factor^2), float64, of images (n, c, h, w)."""
    return F.unfold(images, factor, stride=factor).permute(0, 2, 1).double()


def pca_psnr(train: Float[Tensor, "n c h w"], held_out: Float[Tensor, "m c h w"], factor: int, channels: int) -> float:
    """PSNR in dB, mean over `held_out`, of the best linear code of f x f patches in `channels` numbers.

    The floor of any autoencoder with latents of that size. Images in [-1, 1], those with alpha `as_seen`.
    """
    _, directions, mean = principal_patches(train.split(64), factor, channels)
    errors = []
    for part in held_out.split(64):
        patches = _patches(part, factor)
        decoded = (patches - mean) @ directions.T @ directions + mean
        errors.append((decoded.clamp(-1, 1) - patches).square().mean((1, 2)))
    return (10 * torch.log10(4 / torch.cat(errors).clamp(min=1e-10))).mean().item()


@torch.no_grad()
def fit_encoder(vae: AutoencoderTiny, batches: Iterable[Float[Tensor, "_ c h w"]]) -> None:
    """Put the projection on the principal patches of these batches of images into the encoder, in place.

    z times the config's `scaling_factor` has mean 0 and a mean variance of 1.
    """
    seen = (encoder_input(images, vae.config) for images in batches)
    variances, directions, mean = principal_patches(seen, downsampling_factor(vae.config), vae.config.latent_channels)
    variances = variances.clamp(min=LEAST)
    scales = variances ** (-WHITENING / 2)
    weights = scales[:, None] * directions / (variances * scales.square()).mean().sqrt() / vae.config.scaling_factor
    hold_projection(vae, weights, -weights @ mean)
