"""The autoencoder's training: reconstruction losses, KL term, codebook or fixed encoder, perhaps a discriminator."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from torch import Tensor, nn

from ldm.config.settings import VaeLoss, VaeSettings
from ldm.data import Splits, apart, dataset_fingerprint, epoch_order
from ldm.data.buckets import buckets_of, sizes_of
from ldm.models.autoencoder import (
    Autoencoder,
    build_vae,
    code_counts,
    fold_whitening,
    latent_statistics,
    load_vae,
    shape_of,
    unfreeze,
)
from ldm.models.digests import network_digest
from ldm.models.latents import encoder_input, is_tiny, posterior
from ldm.models.linear_autoencoder import FITTED_PIXELS, fit_encoder
from ldm.models.reconstruction_losses import (
    PatchDiscriminator,
    RandomFeatures,
    edge_loss,
    gaussian_kl,
    hinge_discriminator_loss,
)
from ldm.models.saving import save_component
from ldm.models.vector_quantizer import Codebook, code_usage, decode_quantized
from ldm.pipelines.model_folder import resolve_model
from ldm.training.data_order import batch_noise, derive_seed, image_batches
from ldm.training.task import BatchSlice, LossAndMetrics, SampleRef
from ldm.utils.assets import shipped_autoencoder
from ldm.utils.errors import UserError
from ldm.utils.image_grid import image_grid
from ldm.utils.image_sizes import Size, resolution_of, size_of
from ldm.utils.image_tensors import as_seen, seen_channels, to_images, to_pixels

LEAST_CROP = 8  # latents a side: of less a decoder learns the borders (29.0 dB at 4 x 4 where whole images give 31.4)


def _fitted(resolution: int | Size) -> int:
    """Number of images that a linear encoder is computed from."""
    return max(200, FITTED_PIXELS // math.prod(size_of(resolution)))


def check_shapes(settings: VaeSettings, channels: int, resolution: int | Size, sizes: Iterable[Size] = ()) -> None:
    """Images of this side or (height, width), and of `sizes`.

    Raises: UserError: images, crops, patches and latents that do not go together.
    """
    model = settings.model
    for size in (size_of(resolution), *sizes):
        if any(side % model.factor for side in size):
            shown = resolution_of(size)
            raise UserError(f"data.resolution {shown} must be a multiple of the VAE's factor {model.factor}")
        if settings.crop % model.factor or settings.crop > min(size):
            raise UserError(f"vae.crop {settings.crop} must be a multiple of {model.factor} of at most {min(size)}")
    if model.kind == "linear" and model.latent_channels > (most := channels * model.factor**2):
        raise UserError(
            f"vae.model.latent_channels {model.latent_channels} is more than the {most} numbers of a patch of "
            f"{channels} x {model.factor} x {model.factor}: lower it"
        )


def initial_vae(settings: VaeSettings, channels: int) -> tuple[Autoencoder, VaeSettings]:
    """The autoencoder of `start.model`, to be trained on, and the settings with its shape and crops that suit it.

    Raises: UserError if there is none, or if it is for images of other channels than these.
    """
    source = str(settings.start.model)
    local = Path(source) if Path(source).exists() else shipped_autoencoder(source)
    vae = load_vae(local or resolve_model(source).paths["vae"])
    if vae.config.in_channels != channels:
        raise UserError(
            f"vae.start.model: {source} takes images of {vae.config.in_channels} channels, and the data have "
            f"{channels}: set data.channels to match, or name another"
        )
    model, crop = shape_of(vae), settings.crop
    least = LEAST_CROP * model.factor
    if 0 < crop < least and not crop % model.factor:  # others are refused by `check_shapes`, as they are
        crop = least if least <= min(map(min, settings.data.sizes)) else 0
    return unfreeze(vae), settings.model_copy(update={"model": model, "crop": crop})


class VaeObjective(nn.Module):
    """The VAE, its losses and its discriminator as one module: forward gives the loss to minimise."""

    def __init__(self, vae: Autoencoder, loss: VaeLoss):
        super().__init__()
        self.vae, self.weights = vae, loss
        channels = seen_channels(vae.config.in_channels)
        self.codebook = None
        if isinstance(vae, VQModel):
            self.codebook = Codebook(vae.config.num_vq_embeddings, loss.codebook_decay, loss.revive_after)
        self.perceptual = RandomFeatures(channels) if loss.perceptual else None
        self.discriminator = PatchDiscriminator(channels) if loss.adversarial else None

    def forward(self, images: Tensor, noise: Tensor | None = None, progress: float = 0.0) -> LossAndMetrics:
        """Images (B, C, H, W) in [-1, 1] and the posterior's standard normal noise (B, c, h, w), None for a VQModel."""
        decoded, bottleneck, numbers = self._code(encoder_input(images, self.vae.config), noise)
        images, decoded = as_seen(images), as_seen(decoded)
        error = decoded - images
        terms = {"l1": error.abs().mean(), "edge": edge_loss(decoded, images)} | bottleneck
        if self.weights.mse:
            terms["mse"] = error.square().mean()
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
        """Reconstructions, the loss terms of the bottleneck, and scalars to log that are not in the loss.

        `images`: as the encoder is shown them.
        """
        if self.codebook is not None:
            vectors = self.vae.encode(images).latents
            quantised, commitment, numbers = self.codebook(vectors, self.vae.quantize.embedding.weight)
            decoded = decode_quantized(self.vae, quantised).float()
            return decoded, {"commitment": commitment}, numbers
        if is_tiny(self.vae.config):
            with torch.no_grad():
                latents = self.vae.encode(images).latents
            return self.vae.decode(latents + noise).sample.float(), {}, {}
        gaussian = self.vae.encode(images).latent_dist
        decoded = self.vae.decode(gaussian.mean + gaussian.std * noise).sample.float()
        return decoded, {"kl": gaussian_kl(gaussian.mean.float(), gaussian.logvar.float())}, {}


class VaeTask:
    """Trains a VAE: see `ldm.training.task.Task`."""

    def __init__(self, settings: VaeSettings, data: Splits):
        self.settings, self.data = settings, data
        self.fingerprints = dataset_fingerprint(data.train, captions=False)
        if settings.train.mixed_precision == "fp16":
            raise UserError(
                "train.mixed_precision fp16 overflows in autoencoders; use auto, bf16 or no for `ldm train vae`"
            )
        torch.manual_seed(derive_seed(settings.seed, 1))
        self.model = self._initial()
        self.scaling_factor = self.model.config.scaling_factor
        self.module = VaeObjective(self.model, settings.loss)
        self.num_samples = len(data.train)
        self.weights: np.ndarray | None = None
        self.buckets = None if self.settings.crop else buckets_of(data.train)
        self.order = epoch_order(data.train)
        self.channels_last = True  # measured: 1.3 times the images/s at these few channels and large maps
        self.find_unused_parameters = settings.loss.adversarial > 0 and settings.loss.adversarial_start > 0

    def __getstate__(self) -> dict:
        """What `batch` needs, for the data loader's workers."""
        return {name: value for name, value in self.__dict__.items() if name not in ("model", "module")}

    def _initial(self) -> Autoencoder:
        """The autoencoder before its first step; the settings are given its shape."""
        data = self.data.train
        if self.settings.start.model:
            vae, self.settings = initial_vae(self.settings, data.channels)
            self.fingerprints["start"] = network_digest(vae)
        check_shapes(self.settings, data.channels, data.resolution, sizes_of(data))
        if self.settings.start.model:
            return vae
        vae = build_vae(self.settings.model, data.channels, max(size_of(data.resolution)))
        if self.settings.model.kind == "linear":
            fit_encoder(vae, image_batches(data, limit=_fitted(data.resolution)))
        return vae

    def batch(self, samples: list[SampleRef], rows: BatchSlice) -> dict[str, Tensor]:
        images = to_images(np.stack([self._pixels(sample) for sample in samples]))
        if self.settings.model.kind == "vq":
            return {"images": images}
        sides = (side // self.settings.model.factor for side in images.shape[2:])
        shape = (self.settings.model.latent_channels, *sides)
        noise = batch_noise(rows, shape, self.settings.seed, 2)
        if self.settings.model.kind == "linear":
            uniform = torch.special.ndtr(batch_noise(rows, (1, 1, 1), self.settings.seed, 3))
            noise *= self.settings.loss.latent_noise / self.scaling_factor * uniform
        return {"images": images, "noise": noise}

    def _pixels(self, sample: SampleRef) -> np.ndarray:
        pixels, crop = self.data.train.image(sample.index), self.settings.crop
        if not crop:
            return pixels
        rng = np.random.default_rng([self.settings.seed, sample.epoch, sample.index])
        top, left = rng.integers(0, np.array(pixels.shape[:2]) - crop + 1)
        return pixels[top : top + crop, left : left + crop]

    @torch.no_grad()
    def report(self, folder: Path, label: str) -> dict[str, float]:
        errors: list[Tensor] = []
        counts = torch.zeros(self.settings.model.codebook_size)
        strip: list[np.ndarray] = []
        for images, latents, decoded in self._reconstructions():
            counts += code_counts(self.model, latents).cpu() if isinstance(self.model, VQModel) else 0
            errors.append((as_seen(decoded) - as_seen(images)).square().mean((1, 2, 3)).cpu())
            strip += [to_pixels(images), to_pixels(decoded)] if len(strip) < 2 else []
        pairs = [image for pixels in strip for image in pixels[:16]]
        image_grid(pairs, columns=16).save(folder / f"{label}.png")
        psnr = 10 * torch.log10(4 / torch.cat(errors).clamp(min=1e-10))
        return {"psnr": psnr.mean().item()} | (code_usage(counts) if isinstance(self.model, VQModel) else {})

    def _reconstructions(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of validation images (b, C, H, W), their latents (b, c, h, w) and what these decode to."""
        for batch in image_batches(self.data.validation, 32, limit=128):
            images = batch.to(self.model.device)
            latents = posterior(self.model, images).mode()
            yield images, latents, self.model.decode(latents).sample.clamp(-1, 1)

    def has_validation(self) -> bool:
        return apart(self.data.train, self.data.validation)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The mean squared error of reconstructions."""
        pairs = ((as_seen(images), as_seen(decoded)) for images, _, decoded in self._reconstructions())
        errors = [(decoded - images).square().mean((1, 2, 3)).cpu() for images, decoded in pairs]
        return {"loss": torch.cat(errors).mean().item()}

    def finish(self, folder: Path) -> None:
        if self.settings.model.kind != "linear":
            statistics = latent_statistics(self.model, image_batches(self.data.train, limit=4096))
            fold_whitening(self.model, *statistics)
        save_component(self.model, folder / "vae")
