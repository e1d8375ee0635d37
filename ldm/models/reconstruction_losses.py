"""Losses of an autoencoder: edges, a perceptual distance that needs no download, a PatchGAN, the KL term."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def edge_loss(x: Float[Tensor, "b C H W"], y: Float[Tensor, "b C H W"]) -> Float[Tensor, ""]:
    """Mean L1 distance of horizontal and vertical finite differences.

    The gradient-difference loss of Mathieu et al. 2016, arXiv 1511.05440, eq. 6, on signed differences with exponent 1.
    """
    d = x - y
    return (d[..., 1:, :] - d[..., :-1, :]).abs().mean() + (d[..., :, 1:] - d[..., :, :-1]).abs().mean()


class RandomFeatures(nn.Module):
    """A perceptual distance from a fixed, randomly drawn convolutional pyramid: no weights to fetch, real gradients.

    Features at each scale are normalised over channels, and their squared distance averaged over positions and scales,
    as in LPIPS. Random instead of trained filters: Liu et al. 2021, arXiv 2103.10571. The filters are drawn from a
    fixed seed, so the distance is the same in every run.

    Args:
        channels: of the images, (B, channels, H, W) in [-1, 1], H and W at least 8.
    """

    def __init__(self, channels: int, widths: tuple[int, ...] = (16, 32, 64)):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for level, (inputs, outputs) in enumerate(zip((channels, *widths), widths, strict=False)):
            kernel = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
            self.register_buffer(f"kernel_{level}", kernel, persistent=False)
        self.levels = len(widths)

    def forward(self, x: Float[Tensor, "b C H W"], y: Float[Tensor, "b C H W"]) -> Float[Tensor, ""]:
        """Distance of two batches of images, averaged over the batch: >= 0, and 0 for equal images."""
        pair = torch.cat([x, y])
        total = x.new_zeros(())
        for level in range(self.levels):
            pair = F.leaky_relu(F.conv2d(pair, getattr(self, f"kernel_{level}").to(pair.dtype), padding=1), 0.2)
            a, b = F.normalize(pair, dim=1, eps=1e-4).chunk(2)
            total = total + (a - b).square().sum(1).mean()
            pair = F.avg_pool2d(pair, 2)
        return total / self.levels


class PatchDiscriminator(nn.Module):
    """Classifies overlapping patches as real or fake, one logit each. Isola et al. 2017, arXiv 1611.07004."""

    def __init__(self, channels: int, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 1, 1, bias=False),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 4, 1, 1),
        )

    def forward(self, x: Float[Tensor, "b C H W"]) -> Float[Tensor, "b 1 h w"]:
        return self.layers(x)

    def frozen(self, x: Float[Tensor, "b C H W"]) -> Float[Tensor, "b 1 h w"]:
        """The same logits with gradients to the image but not to the weights: one backward serves both players."""
        weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return torch.func.functional_call(self, weights, (x,))


def hinge_discriminator_loss(real: Float[Tensor, "*shape"], fake: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """mean(relu(1 - real)) / 2 + mean(relu(1 + fake)) / 2 (Lim & Ye 2017, arXiv 1705.02894)."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def gaussian_kl(mean: Float[Tensor, "*shape"], logvar: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """KL(N(mean, e^logvar) || N(0, 1)) in nats, averaged over the elements: >= 0."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
