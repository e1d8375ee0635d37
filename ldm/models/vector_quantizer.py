"""The codebook of a VQ autoencoder while it is trained: nearest codes, moving averages, revival of unused codes, usage.

Each vector of the encoder is replaced by the nearest of K codes. Each code follows the mean of its vectors by an
exponential moving average, so the loss only has to hold the encoder to its codes (commitment). Source: van den Oord,
Vinyals, Kavukcuoglu 2017, Neural discrete representation learning, arXiv 1711.00937, section 3.2 and appendix A.1.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor, nn


class Codebook(nn.Module):
    """Quantizes vectors with codes that it updates; the codes themselves belong to the autoencoder.

    A code that no vector chose for `revive_after` forward passes is moved to a vector of the batch, drawn with
    probability in proportion to its squared distance from its code. All codes start as unused, so the first batch
    places them all. The draw is from torch's global generator, which the trainer seeds from (seed, step); with several
    processes that of the first counts.

    Args:
        size: number of codes K.
        decay: of the moving averages, in [0, 1); 0 = the mean over the batch alone.
        revive_after: forward passes, at least 1.
    """

    def __init__(self, size: int, decay: float = 0.97, revive_after: int = 50):
        super().__init__()
        self.decay, self.revive_after = decay, revive_after
        self.usage = checkpointed(torch.zeros(size))  # moving average: how many vectors of a batch chose each code
        self.idle = checkpointed(torch.full((size,), float(revive_after)))  # forward passes since a code was chosen

    def forward(
        self, z: Float[Tensor, "b c h w"], codes: Float32[Tensor, "K c"]
    ) -> tuple[Float32[Tensor, "b c h w"], Float32[Tensor, ""], dict[str, Tensor]]:
        """Replace z by its nearest codes; in training mode the codes are then updated in place.

        Args:
            z: the encoder's output.
            codes: changed in training mode.
        Returns: the quantized z, through which gradients pass unchanged to z (straight-through); the commitment loss,
            the mean squared distance of z from its fixed codes; and scalars to log: codes_used, the fraction of the
            codes that this batch chose, and perplexity, that of the moving averages.
        """
        z = z.float()
        vectors = z.detach().permute(0, 2, 3, 1).flatten(0, 2)
        if self.training:
            self._revive(vectors, codes)
        index = nearest(vectors, codes)
        chosen = codes.detach()[index].view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)
        counts = torch.zeros_like(self.usage).index_add_(0, index, torch.ones_like(vectors[:, 0]))
        if self.training:
            self._follow(vectors, codes, index, counts)
        numbers = {"codes_used": (counts > 0).float().mean(), "perplexity": perplexity(self.usage.detach())}
        straight_through = z + (chosen - z).detach()
        return straight_through + zero_gradient(self.usage, self.idle, codes), F.mse_loss(z, chosen), numbers

    @torch.no_grad()
    def _revive(self, vectors: Tensor, codes: Tensor) -> None:
        error = (vectors - codes[nearest(vectors, codes)]).square().sum(1)
        drawn = vectors[torch.multinomial(error.clamp(min=1e-8), len(codes), replacement=True)]
        if _distributed():
            dist.broadcast(drawn, 0)
        dead = self.idle >= self.revive_after
        codes.copy_(torch.where(dead[:, None], drawn, codes))
        self.usage.masked_fill_(dead, 0)  # then the code's next mean counts alone
        self.idle.masked_fill_(dead, 0)

    @torch.no_grad()
    def _follow(self, vectors: Tensor, codes: Tensor, index: Tensor, counts: Tensor) -> None:
        """N <- d N + (1 - d) n and e <- (d N e + (1 - d) sum of its vectors) / N, with n over all processes."""
        sums = torch.zeros_like(codes).index_add_(0, index, vectors)
        if _distributed():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        old = self.decay * self.usage
        usage = old + (1 - self.decay) * counts
        mean = (old[:, None] * codes + (1 - self.decay) * sums) / usage.clamp(min=1e-20)[:, None]
        codes.copy_(torch.where(counts[:, None] > 0, mean, codes))
        self.usage.copy_(usage)
        self.idle.copy_(torch.where(counts > 0, 0.0, self.idle + 1))


def decode_quantized(vae: nn.Module, quantized: Float[Tensor, "b c h w"]) -> Float[Tensor, "b C H W"]:
    """What a VQModel's `decode(quantized, force_not_quantize=True)` gives, without its loss of zeros, for which a GPU
    would be waited for.
    """
    spatial = vae.config.norm_type == "spatial"
    return vae.decoder(vae.post_quant_conv(quantized), quantized if spatial else None)


def checkpointed(values: Float[Tensor, " K"]) -> nn.Parameter:
    """Counts as a parameter instead of a buffer: checkpoints hold parameters alone, and a resumed run needs these.

    With one axis they have no weight decay, and with `zero_gradient` no optimizer changes them.
    """
    return nn.Parameter(values)


def zero_gradient(*parameters: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """0, with a gradient of 0 for each parameter.

    Parameters that are updated by hand need one: distributed training waits for the gradient of every parameter.
    """
    return 0 * sum(parameter.sum() for parameter in parameters)


def nearest(vectors: Float[Tensor, "n c"], codes: Float[Tensor, "K c"]) -> Int64[Tensor, " n"]:
    """Index of the nearest code for each vector."""
    return torch.cdist(vectors.float(), codes.detach().float()).argmin(1)


def code_usage(counts: Float[Tensor, " K"]) -> dict[str, float]:
    """How well a codebook is used.

    Args:
        counts: how often each of the K codes was chosen, non-negative numbers with a positive sum.
    Returns: codes_used, the fraction of codes chosen at all, in (0, 1]; perplexity, 2 to the entropy of the choices,
        in [1, K]; entropy, in bits.
    """
    entropy = perplexity(counts).log2()
    return {
        "codes_used": (counts > 0).double().mean().item(),
        "perplexity": perplexity(counts).item(),
        "entropy": entropy.item(),
    }


def perplexity(counts: Float[Tensor, " K"]) -> Float64[Tensor, ""]:
    """e to the entropy in nats of the distribution that is in proportion to the counts; 1 where there are none."""
    probabilities = counts.double() / counts.double().sum().clamp(min=1e-30)
    return torch.special.entr(probabilities).sum().exp()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
