"""The noise process: how a clean sample becomes noise, what the network predicts, and at which times it learns.

One convention everywhere: x_t = alpha_t x0 + sigma_t eps, with t = 0 data and t = 1 noise. The network sees
`timestep = 1000 t` in float for flow, and the integer index 0..999 for the discrete variance-preserving schedules,
as the matching diffusers schedulers pass them. `alphas_cumprod` is alpha_t squared.

    flow           alpha = 1 - t, sigma = t; target v = eps - x0      Liu et al. 2022, arXiv 2209.03003
    cosine         alpha^2 = cos^2(pi/2 (t + s) / (1 + s)), s = .008  Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17
    scaled_linear  beta from (sqrt(.00085) .. sqrt(.012))^2           Rombach et al. 2022, arXiv 2112.10752
"""

import math

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000


def discrete_alphas_cumprod(process: str) -> Tensor:
    """alpha_t^2 at the 1000 integer timesteps of 'cosine' or 'scaled_linear', float64, shape (1000,), falling."""
    steps = torch.arange(NUM_TRAIN_TIMESTEPS + 1, dtype=torch.float64) / NUM_TRAIN_TIMESTEPS
    if process == "cosine":
        alpha_bar = torch.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    else:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, NUM_TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to broadcast against (B, ...), in the other's dtype."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


class NoiseProcess:
    """x0, eps, time -> x_t, network timestep, target and loss weight.

    Args:
        process: 'flow', 'cosine' or 'scaled_linear'.
        prediction_type: 'flow' (v = eps - x0), 'v_prediction' (v = alpha eps - sigma x0) or 'epsilon'.
        timesteps: 'uniform' or 'logit_normal' (t = sigmoid(N(0, 1)); Esser et al. 2024, arXiv 2403.03206, sec. 3.1).
        shift: moves flow times towards noise, t' = s t / (1 + (s - 1) t) (same paper, eq. 23).
        min_snr_gamma: cap of the min-SNR weight, 0 = off (Hang et al. 2023, arXiv 2303.09556).
    """

    def __init__(self, process="flow", prediction_type="flow", timesteps="logit_normal", shift=1.0, min_snr_gamma=0.0):
        self.process, self.prediction_type, self.timesteps = process, prediction_type, timesteps
        self.shift, self.min_snr_gamma = shift, min_snr_gamma
        self.alphas_cumprod = None if process == "flow" else discrete_alphas_cumprod(process)

    def draw_times(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """Times t in [0, 1), shape (B,), float32: stratified over the batch, which lowers the loss's variance."""
        u = (torch.randperm(batch_size, generator=generator) + torch.rand(batch_size, generator=generator)) / batch_size
        if self.timesteps == "logit_normal":
            u = torch.sigmoid(torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))
        return self.shift * u / (1 + (self.shift - 1) * u)

    def timestep(self, t: Tensor) -> Tensor:
        """What the network is told: 1000 t for flow (float32), the index floor(1000 t) otherwise (int64)."""
        if self.alphas_cumprod is None:
            return t * NUM_TRAIN_TIMESTEPS
        return (t * NUM_TRAIN_TIMESTEPS).long().clamp(0, NUM_TRAIN_TIMESTEPS - 1)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t at times t, each of shape (B,)."""
        if self.alphas_cumprod is None:
            return 1 - t, t
        alpha_bar = self.alphas_cumprod.to(t.device)[self.timestep(t)]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def corrupt(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t eps; shapes (B, ...) and t (B,)."""
        alpha, sigma = self.scales(t)
        return _rows(alpha, x0) * x0 + _rows(sigma, x0) * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should predict, shape of x0."""
        if self.prediction_type == "flow":
            return eps - x0
        if self.prediction_type == "epsilon":
            return eps
        alpha, sigma = self.scales(t)
        return _rows(alpha, x0) * eps - _rows(sigma, x0) * x0

    def predict_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The clean sample that a prediction implies, shape of x_t; 'epsilon' needs sigma_t > 0 and alpha_t > 0."""
        alpha, sigma = (_rows(scale, x_t) for scale in self.scales(t))
        if self.prediction_type == "flow":
            return x_t - sigma * prediction
        if self.prediction_type == "epsilon":
            return (x_t - sigma * prediction) / alpha
        return alpha * x_t - sigma * prediction

    def loss_weight(self, t: Tensor) -> Tensor:
        """Weight of each sample's squared error, shape (B,); 1 unless min-SNR is on.

        min(snr, gamma) / snr for eps, min(snr, gamma) / (snr + 1) for v: the same weight on the error in x0.
        """
        if not self.min_snr_gamma or self.prediction_type == "flow":
            return torch.ones_like(t)
        alpha, sigma = self.scales(t)
        snr = (alpha / sigma) ** 2
        capped = snr.clamp(max=self.min_snr_gamma)
        return (capped / (snr if self.prediction_type == "epsilon" else snr + 1)).to(t.dtype)
