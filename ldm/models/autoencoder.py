"""The autoencoder: a stock `AutoencoderKL` or `VQModel` trained on the user's images, latents whitened in its weights.

Three spaces: images in [-1, 1]; raw latents, as the network was trained to use them; model latents, about N(0, 1) per
channel, which the denoiser sees. After training the change from raw to model latents is folded into `quant_conv` and
`post_quant_conv`, so encode and decode of the saved network speak model latents, and `scaling_factor` is 1. Latents of
a VQModel are its continuous vectors; decoding replaces them by the nearest codes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

from ldm.config.settings import VaeLoss, VaeModel, VaeSettings
from ldm.data import ImageTextData, Splits, identity_of, spread
from ldm.models.reconstruction_losses import (
    PatchDiscriminator,
    RandomFeatures,
    edge_loss,
    gaussian_kl,
    hinge_discriminator_loss,
)
from ldm.models.vector_quantizer import Codebook, code_usage, nearest
from ldm.training.trainer import Rows, Sample, draw_rows, mix
from ldm.utils.errors import UserError
from ldm.utils.image_grid import sheet
from ldm.utils.untrusted_files import read_json, vetted

Autoencoder: TypeAlias = AutoencoderKL | VQModel
CLASSES = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}


@dataclass(frozen=True)
class Point:
    """A posterior without spread, of a VQModel's encoder or of no encoder at all: latents (B, c, h, w)."""

    mean: Tensor

    @property
    def std(self) -> Tensor:
        return torch.zeros_like(self.mean)

    var = std

    def mode(self) -> Tensor:
        return self.mean


def posterior(vae, images: Tensor):
    """q(z | x) of any autoencoder here, with mean, std and var (B, c, h, w) and mode(); std is 0 for a VQModel."""
    encoded = vae.encode(images)
    return Point(encoded.latents) if isinstance(vae, VQModel) else encoded.latent_dist


def build_vae(model: VaeModel, channels: int, resolution: int = 64) -> Autoencoder:
    """An AutoencoderKL or VQModel for images (B, channels, H, W) with latents (B, latent_channels, H / f, W / f)."""
    levels = len(model.block_out_channels)
    shape = {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(model.block_out_channels),
        "layers_per_block": model.layers_per_block,
        "latent_channels": model.latent_channels,
        "norm_num_groups": model.norm_num_groups,
        "sample_size": resolution,
        "mid_block_add_attention": model.mid_attention,
        "scaling_factor": 1.0,
    }
    return VQModel(num_vq_embeddings=model.codebook_size, **shape) if model.kind == "vq" else AutoencoderKL(**shape)


def load_vae(folder: Path) -> Autoencoder:
    """The finished autoencoder of a run, or any folder with an AutoencoderKL or VQModel, frozen.

    In float32, whatever it was saved in: many overflow in fp16, and a CPU has no fp16 convolutions worth the name.

    Raises: UserError if there is none.
    """
    for candidate in (folder / "final" / "vae", folder / "vae", folder):
        if (candidate / "config.json").is_file() and (candidate / "diffusion_pytorch_model.safetensors").is_file():
            try:
                name = str(read_json(vetted(candidate) / "config.json").get("_class_name"))
                vae = CLASSES.get(name, AutoencoderKL).from_pretrained(candidate, use_safetensors=True)
            except UserError:
                raise
            except Exception as error:  # the library has many exceptions for a broken file
                raise UserError(f"the VAE in {candidate} cannot be read: {str(error).splitlines()[0]}") from error
            _to_unit_scale(vae)
            return vae.eval().requires_grad_(False)
    raise UserError(f"no finished VAE in {folder}: run train_vae.py first, or point --vae to a folder that holds one")


def to_images(pixels: np.ndarray) -> Tensor:
    """uint8 (B, H, W, C) in 0..255 -> float32 (B, C, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_pixels(images: Tensor) -> np.ndarray:
    """Float (B, C, H, W) in [-1, 1] -> uint8 (B, H, W, C), clipped and rounded."""
    scaled = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def image_batches(data: ImageTextData, batch_size: int = 64, limit: int | None = None) -> Iterator[Tensor]:
    """The images of a data set (or `limit` of them, evenly spaced) in order, in [-1, 1], batch by batch."""
    chosen = spread(len(data), limit or len(data))
    for start in range(0, len(chosen), batch_size):
        yield to_images(np.stack([data.image(int(i)) for i in chosen[start : start + batch_size]]))


def factor_of(vae) -> int:
    """How many pixels, each way, one latent stands for."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


@torch.no_grad()
def latent_statistics(vae: Autoencoder, images: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Per-channel mean and std of latents drawn from the posterior, float64 of shape (c,) each.

    The variance is that of the mixture: variance of the posterior means plus the mean posterior variance. A VQModel
    gives one std for all channels, the root mean square: only that leaves each vector's nearest code the nearest.
    """
    first = second = torch.zeros(())
    count = 0.0
    for batch in images:
        spread_out = posterior(vae, batch.to(vae.device, vae.dtype))
        mean = spread_out.mean.double()
        first = first + mean.sum((0, 2, 3))
        second = second + (mean.square() + spread_out.var.double()).sum((0, 2, 3))
        count += mean.numel() / mean.shape[1]
    mean = first / count
    variance = (second / count - mean.square()).clamp(min=0)
    if isinstance(vae, VQModel):
        variance = variance.mean().expand_as(variance)
    return mean.cpu(), variance.sqrt().cpu()


@torch.no_grad()
def fold_whitening(vae: Autoencoder, mean: Tensor, std: Tensor) -> None:
    """Change the VAE, in place, so that its latents are (z - mean) / std of what they were; decoding undoes it exactly.

    quant_conv gives [mean, logvar] of the posterior: its first c rows are divided by std after taking mean off the
    bias, its last c biases fall by 2 log std. post_quant_conv takes z' = (z - mean) / std: W' = W std, b' = b + W mean.
    A VQModel's quant_conv gives the vector alone, and its codes move with it.
    """
    if (std <= 1e-6).any():
        dead = (std <= 1e-6).nonzero().flatten().tolist()
        raise UserError(f"latent channels {dead} are dead (std 0): train longer or lower loss.kl or loss.commitment")
    if isinstance(vae, VQModel) and not torch.allclose(std, std[:1]):
        raise ValueError("std must be one number for all channels of a VQModel, else other codes become the nearest")
    quant, post = vae.quant_conv, vae.post_quant_conv
    shift, scale = mean.to(quant.weight), std.to(quant.weight)
    c = len(scale)
    quant.bias[:c] = (quant.bias[:c] - shift) / scale
    quant.weight[:c] /= scale.view(-1, 1, 1, 1)
    if isinstance(vae, VQModel):
        codes = vae.quantize.embedding.weight
        codes.copy_((codes - shift.to(codes)) / scale.to(codes))
    else:
        quant.bias[c:] -= 2 * scale.log()
    post.bias += post.weight[:, :, 0, 0] @ shift
    post.weight *= scale.view(1, -1, 1, 1)


def _to_unit_scale(vae: Autoencoder) -> None:
    """Fold a foreign VAE's scaling and shift factors into its weights: one latent space, whoever reads it."""
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
    if scale == 1 and shift == 0:
        return
    if vae.quant_conv is None or vae.post_quant_conv is None:
        raise UserError(
            "this VAE has a scaling factor and no quant convolutions to fold it into; use another, or train one"
        )
    ones = torch.ones(vae.config.latent_channels, dtype=torch.float64)
    fold_whitening(vae, shift * ones, ones / scale)
    vae.register_to_config(scaling_factor=1.0, shift_factor=None)


def code_counts(vae: VQModel, latents: Tensor) -> Tensor:
    """How often latents (B, c, h, w) choose each code: float32 (K,)."""
    index = nearest(latents.movedim(1, -1).flatten(0, 2), vae.quantize.embedding.weight)
    return torch.bincount(index, minlength=vae.config.num_vq_embeddings).float()


class VaeObjective(nn.Module):
    """The VAE, its losses and its discriminator as one module: forward gives the loss to minimise."""

    def __init__(self, vae: Autoencoder, loss: VaeLoss):
        super().__init__()
        self.vae, self.weights = vae, loss
        channels = vae.config.in_channels
        self.codebook = None
        if isinstance(vae, VQModel):
            self.codebook = Codebook(vae.config.num_vq_embeddings, loss.codebook_decay, loss.revive_after)
        self.perceptual = RandomFeatures(channels) if loss.perceptual else None
        self.discriminator = PatchDiscriminator(channels) if loss.adversarial else None

    def forward(
        self, images: Tensor, noise: Tensor | None = None, progress: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (B, C, H, W) in [-1, 1] and the posterior's standard normal noise (B, c, h, w), None for a VQModel."""
        decoded, bottleneck, numbers = self._code(images, noise)
        terms = {"l1": (decoded - images).abs().mean(), "edge": edge_loss(decoded, images)} | bottleneck
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(decoded, images)
        critic = self.discriminator if progress >= self.weights.adversarial_start else None
        if critic is not None:
            terms["adversarial"] = -critic.frozen(decoded).mean()
        loss = sum(getattr(self.weights, name) * value for name, value in terms.items())
        if critic is not None:
            terms["discriminator"] = hinge_discriminator_loss(critic(images), critic(decoded.detach()))
            loss = loss + terms["discriminator"]
        return loss, terms | numbers

    def _code(self, images: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Images through the bottleneck, what that costs, and numbers to look at that are no part of the loss."""
        if self.codebook is not None:
            vectors = self.vae.encode(images).latents
            quantised, commitment, numbers = self.codebook(vectors, self.vae.quantize.embedding.weight)
            decoded = self.vae.decode(quantised, force_not_quantize=True).sample.float()
            return decoded, {"commitment": commitment}, numbers
        gaussian = self.vae.encode(images).latent_dist
        decoded = self.vae.decode(gaussian.mean + gaussian.std * noise).sample.float()
        return decoded, {"kl": gaussian_kl(gaussian.mean.float(), gaussian.logvar.float())}, {}


class VaeTask:
    """Teaches a VAE: see `ldm.training.trainer.Task`."""

    def __init__(self, settings: VaeSettings, data: Splits):
        self.settings, self.data = settings, data
        self.identity = identity_of(data.train, captions=False)
        model = settings.model
        if settings.train.mixed_precision == "fp16":
            raise UserError(
                "train.mixed_precision fp16 overflows in autoencoders; use auto, bf16 or no for train_vae.py"
            )
        if data.train.resolution % model.factor:
            raise UserError(
                f"data.resolution {data.train.resolution} must be a multiple of the VAE's factor {model.factor}"
            )
        if settings.crop % model.factor or settings.crop > data.train.resolution:
            raise UserError(
                f"crop {settings.crop} must be a multiple of {model.factor} of at most {data.train.resolution}"
            )
        torch.manual_seed(mix(settings.seed, 1))
        self.model = build_vae(model, data.train.channels, data.train.resolution)
        self.module = VaeObjective(self.model, settings.loss)
        self.num_samples = len(data.train)
        self.channels_last = True  # measured: 1.3 times the images/s at these few channels and large maps
        self.find_unused_parameters = settings.loss.adversarial > 0 and settings.loss.adversarial_start > 0

    def batch(self, samples: list[Sample], rows: Rows) -> dict[str, Tensor]:
        images = to_images(np.stack([self._pixels(sample) for sample in samples]))
        if self.settings.model.kind == "vq":
            return {"images": images}
        side = images.shape[-1] // self.settings.model.factor
        shape = (self.settings.model.latent_channels, side, side)
        return {"images": images, "noise": draw_rows(rows, shape, self.settings.seed, 2)}

    def _pixels(self, sample: Sample) -> np.ndarray:
        pixels, crop = self.data.train.image(sample.index), self.settings.crop
        if not crop:
            return pixels
        rng = np.random.default_rng([self.settings.seed, sample.epoch, sample.index])
        top, left = rng.integers(0, pixels.shape[0] - crop + 1, 2)
        return pixels[top : top + crop, left : left + crop]

    @torch.no_grad()
    def report(self, folder: Path, label: str) -> dict[str, float]:
        errors: list[Tensor] = []
        counts = torch.zeros(self.settings.model.codebook_size)
        strip: list[np.ndarray] = []
        for batch in image_batches(self.data.validation, 32, limit=128):
            images = batch.to(self.model.device)
            latents = posterior(self.model, images).mode()
            decoded = self.model.decode(latents).sample.clamp(-1, 1)
            counts += code_counts(self.model, latents).cpu() if isinstance(self.model, VQModel) else 0
            errors.append((decoded - images).square().mean((1, 2, 3)).cpu())
            strip += [to_pixels(images), to_pixels(decoded)] if len(strip) < 2 else []
        pairs = [image for pixels in strip for image in pixels[:16]]
        sheet(pairs, columns=16).save(folder / f"{label}.png")
        psnr = 10 * torch.log10(4 / torch.cat(errors).clamp(min=1e-10))
        return {"psnr": psnr.mean().item()} | (code_usage(counts) if isinstance(self.model, VQModel) else {})

    def finish(self, folder: Path) -> None:
        statistics = latent_statistics(self.model, image_batches(self.data.train, limit=4096))
        fold_whitening(self.model, *statistics)
        self.model.save_pretrained(folder / "vae")
