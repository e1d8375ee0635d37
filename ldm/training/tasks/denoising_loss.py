"""The denoising loss: noise process, denoiser and text encoder as one module."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.schedules import NUM_TRAIN_TIMESTEPS
from ldm.diffusion.variational import variational_loss
from ldm.models.representation_alignment import Alignment
from ldm.training.live_latents import encoded
from ldm.training.task import LossAndMetrics


class LossVariance(nn.Module):
    """u(t), the logarithm of the expected loss at each time, learned beside the denoiser.

    Random Fourier features of logsnr / 4 and one linear layer that starts at zero.
    Source: Karras et al. 2024, arXiv 2312.02696.
    """

    def __init__(self, features: int = 128):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(features))
        self.register_buffer("phases", torch.rand(features))
        self.last = nn.Linear(features, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, logsnr: Tensor) -> Tensor:
        """(B,) -> (B,)."""
        angles = logsnr.clamp(-30, 30).unsqueeze(1) / 4 * self.frequencies + self.phases
        return self.last((2 * torch.pi * angles).cos()).squeeze(1)


class DenoisingObjective(nn.Module, ABC):
    """Denoiser, text encoder and noise process as one module: forward gives the mean of `losses`."""

    def __init__(
        self,
        unet: nn.Module,
        text_encoder: CLIPTextModel,
        process: NoiseProcess,
        alignment: Alignment | None = None,
    ):
        super().__init__()
        self.unet, self.text_encoder, self.process, self.alignment = unet, text_encoder, process, alignment
        self.vae: Any = None  # or, in a tuple because it is no part of what is trained, what encodes `pixels`
        self.resident: Any = None  # likewise, the latents that are on the device, if they are
        self.uncertainty = LossVariance() if process.weight == "learned" else None  # the name in checkpoints

    @abstractmethod
    def losses(self, latents: Tensor, noise: Tensor, times: Tensor, input_ids: Tensor) -> LossAndMetrics:
        """The loss of each item, (B,), and named scalars to log.

        Args:
            latents, noise: clean latents and standard normal noise, (B, c, h, w).
            times: (B,) in [0, 1].
            input_ids: (B, L), or (1, L) where all captions are the same.
        """

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        times: Tensor,
        input_ids: Tensor,
        progress: float,
        images: Tensor | None = None,
        pixels: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> LossAndMetrics:
        """The mean loss; arguments as of `losses`.

        `images`, (B, C, H, W) in [-1, 1]: of the same items, while the U-Net is aligned with an image encoder.
        `pixels`, the same images, if latents are encoded now: then `latents` is the standard normal noise of their
        posterior.
        `rows`, int64 (B,): the same, if latents are on the device; which of them.
        """
        if pixels is not None:
            latents = encoded(self.vae[0], pixels, latents)
        if rows is not None:
            latents = self.resident[0].draw(rows, latents)
        losses, metrics = self.losses(latents, noise, times, input_ids)
        if self.alignment is not None and images is not None:
            metrics["alignment"] = self.alignment(images).mean()
            return losses.mean() + self.alignment.weight * metrics["alignment"], metrics
        return losses.mean(), metrics

    def predict(self, x_t: Tensor, times: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The network's output in float32, (B, c, h, w), of noisy latents x_t and text features (B, L, D)."""
        process = self.process
        return self.unet(process.network_input(x_t, times), process.timestep(times), prompt_embeds).sample.float()


class LdmObjective(DenoisingObjective):
    """The denoiser learns from the data: squared error of its prediction, weighted by time."""

    def losses(self, latents: Tensor, noise: Tensor, times: Tensor, input_ids: Tensor) -> LossAndMetrics:
        process, metrics = self.process, {}
        prompt_embeds = self.text_encoder(input_ids=input_ids).last_hidden_state.expand(len(latents), -1, -1)
        x_t = process.corrupt(latents, noise, times)
        prediction = self.predict(x_t, times, prompt_embeds)
        bound = torch.zeros_like(times)
        if process.learned_variance:
            prediction, fraction = prediction.chunk(2, dim=1)
            bound = variational_loss(process, latents, x_t, prediction, fraction, times)
            metrics["bound"] = bound.mean()
        errors = (prediction - process.target(latents, noise, times)).square().flatten(1).mean(1)
        losses = process.loss_weight(times) * errors
        if self.uncertainty is not None:
            expected = self.uncertainty(process.schedule.logsnr(times))
            losses, metrics["error"] = losses * (-expected).exp() + expected, losses.mean()
        return losses + process.vlb_weight * NUM_TRAIN_TIMESTEPS * bound, metrics
