"""What a denoiser is trained with: the finished autoencoder and text encoder, the cached latents, the noise process."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ldm.config.settings import ClipModel, LdmSettings
from ldm.data import ImageTextData, Splits, is_points
from ldm.data.buckets import of_one_size
from ldm.diffusion.process import NoiseProcess
from ldm.models.autoencoder import load_vae
from ldm.models.digests import network_digest
from ldm.models.identity_autoencoder import IdentityAutoencoder
from ldm.models.pretrained import TEXT, VAE, locate
from ldm.models.text_encoder import load_text, null_text_encoder, untrained_text_encoder
from ldm.pipelines.diffusers_schedulers import export_scheduler
from ldm.training.data_order import derive_seed
from ldm.training.latent_cache import BucketLatents, Latents, Uncached, cached_latents, check_images
from ldm.training.live_latents import LiveLatents
from ldm.training.run_directory import sibling
from ldm.training.tasks.clip import run_tokenizer
from ldm.training.world import own_rank
from ldm.utils.errors import UserError
from ldm.utils.image_sizes import Size, size_of


@dataclass(frozen=True)
class EncodedSplit:
    """A split of the data set and its latents, in the same order."""

    data: ImageTextData
    latents: Latents | BucketLatents | Uncached | LiveLatents

    @property
    def live(self) -> LiveLatents | None:
        """The latents, if they are encoded in each step."""
        return self.latents if isinstance(self.latents, LiveLatents) else None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of an image of `data.resolution`."""
        channels, height, _ = self.latents.shape_of(0)
        factor = self.data.image(0).shape[0] // height
        rows, columns = size_of(self.data.resolution)
        return channels, rows // factor, columns // factor

    @property
    def latent_sizes(self) -> list[Size]:
        """(h, w) of the items' latents, each once."""
        firsts = [part[0] for part in of_one_size(self.data, range(len(self.data)), len(self.data))]
        return [(height, width) for _, height, width in map(self.latents.shape_of, firsts)]


@dataclass(frozen=True)
class Components:
    """Everything beside the denoiser itself; all of it is frozen but, where `trains_text` is set, the text encoder."""

    vae: nn.Module
    vae_digest: str
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    train: EncodedSplit
    validation: EncodedSplit
    mixture: EncodedSplit | None  # made-up images to train on beside the real ones
    process: NoiseProcess
    device: torch.device
    points: bool  # rather than images
    unconditional: bool  # every caption is the null caption
    trains_text: bool

    def __getstate__(self) -> dict:
        """For the data loader's workers, which need no networks."""
        return self.__dict__ | {"vae": None, "text_encoder": None}


def load_components(settings: LdmSettings, data: Splits, run: Path, device: torch.device) -> Components:
    """Load the components that the settings name and encode the data, unless their latents are in the cache.

    Raises: UserError if one is missing, or if they do not go together.
    """
    unconditional, points = settings.text.source == "none", is_points(data.train)
    if unconditional and settings.text.train:
        raise UserError("text.train: true has nothing to train with text.source: none")
    if points != (settings.denoiser == "mlp") or (points and settings.vae != "identity"):
        raise UserError("points (data.source: toy) go with denoiser: mlp and vae: identity, images with unet")
    scheduler_of(settings)  # a sampler that cannot be exported is refused now and not after the training
    vae = resolve_vae(settings.vae, run, data.train).to(device)
    digest = network_digest(vae)
    torch.manual_seed(derive_seed(settings.seed, 1))
    text_encoder, tokenizer = resolve_text_encoder(settings, run, data.train)
    trains_text = settings.text.train or settings.text.source == "new"
    text_encoder.requires_grad_(trains_text)
    if device.type == "cpu":  # torch's fused attention has a backward five times slower in bf16 there
        text_encoder.set_attn_implementation("eager")

    def encoded(split: ImageTextData) -> EncodedSplit:
        if isinstance(vae, IdentityAutoencoder):
            return EncodedSplit(split, Uncached(split))
        if not settings.cache_latents:
            check_images(vae, split)
            return EncodedSplit(split, LiveLatents(vae, split))
        return EncodedSplit(split, cached_latents(vae, split, settings.data.cache_dir, digest=digest, rank=own_rank()))

    return Components(
        vae,
        digest,
        text_encoder,
        tokenizer,
        encoded(data.train),
        encoded(data.validation),
        encoded(data.mixture) if data.mixture is not None else None,
        NoiseProcess(**settings.noise.model_dump()),
        device,
        points,
        unconditional,
        trains_text,
    )


def scheduler_of(settings: LdmSettings):
    """The diffusers scheduler of the run's noise process and sampler. Raises: UserError if there is none."""
    chosen = settings.sampling
    return export_scheduler(settings.noise, chosen.sampler, chosen.time_grid, chosen.eta)


def resolve_vae(source: str, run: Path, data: ImageTextData):
    """The autoencoder that `vae` names, in evaluation mode. Raises: UserError if there is none."""
    if source == "identity":
        return IdentityAutoencoder(data.channels, data.channels, data.channels).eval()
    return load_vae(sibling(run, "vae") if source == "run" else locate(source, VAE))


def resolve_text_encoder(settings: LdmSettings, run: Path, data: ImageTextData) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The text encoder and tokenizer that `text.source` names. Raises: UserError if there are none."""
    options = settings.text
    if options.source == "none":
        return null_text_encoder()
    if options.source == "new":
        if not data.has_captions:
            raise UserError("text.source: new has no captions to learn from; set text.source: none")
        tokenizer = run_tokenizer(run, ClipModel(), data, settings.seed)
        return untrained_text_encoder(options.width, options.layers, tokenizer), tokenizer
    if options.source.startswith("open_clip:"):
        from ldm.models.open_clip import load_text_tower

        return load_text_tower(options.source)
    return load_text(sibling(run, "clip") if options.source == "run" else locate(options.source, TEXT))
