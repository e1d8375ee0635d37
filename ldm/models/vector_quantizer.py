"""The codebook of a VQ autoencoder while it is trained: nearest codes, their moving averages, revival, usage.

Each vector of the encoder is replaced by the nearest of K codes. Codes follow the mean of the vectors they stand for by
exponential moving averages, so the loss only has to hold the encoder to its codes (commitment). Source: van den Oord,
Vinyals, Kavukcuoglu 2017, Neural discrete representation learning, arXiv 1711.00937, section 3.2 and appendix A.1.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class Codebook(nn.Module):
    """Quantises vectors with codes that it moves; the codes themselves belong to the autoencoder.

    A code that no vector chose for `revive_after` forward passes is placed on a vector of the batch, drawn with
    probability in proportion to its squared distance from its code. All codes start out as unused, so the first batch
    places them all. The draw is torch's global generator, which the trainer seeds from (seed, step), and every process
    takes that of the first.

    `usage` and `idle` are parameters with zero gradient, not buffers: a checkpoint keeps what is trained, and a resumed
    run must count on. They have one axis each, so weight decay leaves them alone.

    Args:
        size: number of codes K.
        decay: of the moving averages, in [0, 1); 0 = the mean over the batch alone.
        revive_after: forward passes, at least 1.
    """

    def __init__(self, size: int, decay: float = 0.97, revive_after: int = 50):
        super().__init__()
        self.decay, self.revive_after = decay, revive_after
        self.usage = nn.Parameter(torch.zeros(size))  # moving average of how many vectors of a batch chose each code
        self.idle = nn.Parameter(torch.full((size,), float(revive_after)))  # forward passes since a code was chosen

    def forward(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Replace z by its nearest codes; in training mode the codes are moved, in place, after they were read.

        Args:
            z: (B, c, h, w), what the encoder gives.
            codes: (K, c) float32, changed in training mode.
        Returns: the quantised z (B, c, h, w) float32, through which gradients pass unchanged to z (straight-through);
            the commitment loss, mean squared distance of z from its fixed codes; and numbers to look at: codes_used,
            the share of the codes that this batch chose, and perplexity, that of the moving averages.
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
        touched = 0 * (self.usage.sum() + self.idle.sum() + codes.sum())  # a zero gradient, which processes exchange
        numbers = {"codes_used": (counts > 0).float().mean(), "perplexity": perplexity(self.usage.detach())}
        return z + (chosen - z).detach() + touched, F.mse_loss(z, chosen), numbers

    @torch.no_grad()
    def _revive(self, vectors: Tensor, codes: Tensor) -> None:
        error = (vectors - codes[nearest(vectors, codes)]).square().sum(1)
        drawn = vectors[torch.multinomial(error.clamp(min=1e-8), len(codes), replacement=True)]
        if _several():
            dist.broadcast(drawn, 0)
        dead = self.idle >= self.revive_after
        codes.copy_(torch.where(dead[:, None], drawn, codes))
        self.usage.masked_fill_(dead, 0)  # then the code's next mean counts alone
        self.idle.masked_fill_(dead, 0)

    @torch.no_grad()
    def _follow(self, vectors: Tensor, codes: Tensor, index: Tensor, counts: Tensor) -> None:
        """N <- d N + (1 - d) n and e <- (d N e + (1 - d) sum of its vectors) / N, with n over all processes."""
        sums = torch.zeros_like(codes).index_add_(0, index, vectors)
        if _several():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        old = self.decay * self.usage
        usage = old + (1 - self.decay) * counts
        mean = (old[:, None] * codes + (1 - self.decay) * sums) / usage.clamp(min=1e-20)[:, None]
        codes.copy_(torch.where(counts[:, None] > 0, mean, codes))
        self.usage.copy_(usage)
        self.idle.copy_(torch.where(counts > 0, 0.0, self.idle + 1))


def nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index (n,) int64 of the nearest of the codes (K, c) for each vector (n, c)."""
    return torch.cdist(vectors.float(), codes.detach().float()).argmin(1)


def code_usage(counts: Tensor) -> dict[str, float]:
    """How well a codebook is used.

    Args:
        counts: how often each of the K codes was chosen, (K,), any non-negative numbers with a positive sum.
    Returns: codes_used, the share of the codes chosen at all, in (0, 1]; perplexity, 2 to the entropy of the choices,
        in [1, K]; entropy, in bits.
    """
    entropy = perplexity(counts).log2()
    return {
        "codes_used": (counts > 0).double().mean().item(),
        "perplexity": perplexity(counts).item(),
        "entropy": entropy.item(),
    }


def perplexity(counts: Tensor) -> Tensor:
    """e to the entropy in nats of the distribution that is in proportion to the counts; 1 where there are none."""
    share = counts.double() / counts.double().sum().clamp(min=1e-30)
    return torch.special.entr(share).sum().exp()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
