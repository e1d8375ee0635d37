"""The third part: a denoiser taught to undo noise on cached latents, told by text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.config.settings import LdmSettings
from ldm.data import ImageTextData, Splits, identity_of, spread
from ldm.diffusion.process import NoiseProcess
from ldm.models.digests import network_digest
from ldm.models.identity_autoencoder import IdentityAutoencoder
from ldm.models.mlp import build_mlp
from ldm.models.representation_alignment import Alignment, load_tower
from ldm.models.tokenizer import TokenRows, save_tokenizer, tokenizer_digest
from ldm.models.unet import build_unet, choose_attention
from ldm.pipelines.diffusers_schedulers import export_scheduler
from ldm.pipelines.model_folder import DEFAULTS
from ldm.training.data_order import draw_rows, generator_for, mix
from ldm.training.distributed import precision
from ldm.training.latent_cache import Latents, Uncached, cached_latents
from ldm.training.run_directory import sibling
from ldm.training.task import Rows, Sample, caption_of
from ldm.training.tasks.components import find_text, find_vae
from ldm.training.tasks.denoising_loss import LdmObjective
from ldm.utils.errors import UserError
from ldm.utils.image_grid import points_picture, sheet
from ldm.utils.image_tensors import to_images

QUARTERS = 4  # of the times, in which the gap between validation and training is logged
POINTS_SHOWN = 4096


def caption_or_null(settings: LdmSettings, data: ImageTextData, sample: Sample) -> str:
    """This epoch's caption of a training item, or, with probability `caption_dropout`, the null caption."""
    if settings.caption_dropout:
        rng = np.random.default_rng([settings.seed, 4, sample.epoch, sample.index])
        if rng.random() < settings.caption_dropout:
            return ""
    return caption_of(data, sample, settings.seed)


class LdmTask:
    """Teaches a denoiser, and the text encoder too if asked: see `ldm.training.task.Task`."""

    validation_items = 512
    channels_last = False  # measured: 0.75 times the images/s, for group norm on small maps

    def __init__(
        self,
        settings: LdmSettings,
        data: Splits,
        run: Path,
        device: torch.device,
        watch: Callable[[Any], dict[str, float]] | None = None,
    ):
        """`watch`: judges a pipeline of the present weights; its numbers go with those of every report."""
        settings = self._begin(settings, device)
        self.settings, self.data, self.run, self.watch = settings, data, run, watch
        self.unconditional = settings.text.source == "none"
        if self.unconditional and settings.text.train:
            raise UserError("text.train: true has nothing to train with text.source: none")
        self.points = getattr(data.train, "points", None) is not None
        if self.points != (settings.denoiser == "mlp") or self.points and settings.vae != "identity":
            raise UserError("points (data.source: toy) go with denoiser: mlp and vae: identity, pictures with unet")
        self.vae = find_vae(settings.vae, run, data.train).to(device)
        self.vae_digest = network_digest(self.vae)
        torch.manual_seed(mix(settings.seed, 1))
        self.text_encoder, self.tokenizer = find_text(settings, run, data.train)
        self.token_rows = TokenRows(self.tokenizer)
        self.trains_text = settings.text.train or settings.text.source == "new"
        self.text_encoder.requires_grad_(self.trains_text)
        if device.type == "cpu":  # torch's fused attention has a backward five times slower in bf16 there
            self.text_encoder.set_attn_implementation("eager")
        self.train_latents, self.validation_latents = (self._latents(part) for part in (data.train, data.validation))
        self.mixture = data.mixture or data.train  # the latter is never drawn from as a mixture
        self.mixture_latents = self._latents(data.mixture) if data.mixture else self.train_latents
        self.process = NoiseProcess(**settings.noise.model_dump())
        self._scheduler()  # a sampler that could not be exported is said now and not after the training
        torch.manual_seed(mix(settings.seed, 1))
        self.unet = self._build()
        half = precision(settings.train.mixed_precision, device) != "no"
        choose_attention(self.unet, settings.model.attention, device, half)
        self.module = self._objective()
        self.identity = self._identity()
        self.model = self._kept()
        self.num_samples = len(data.train)
        self.weights = getattr(data.train, "weights", None)
        self.find_unused_parameters = self.module.alignment is not None  # its network rests after a while

    def _begin(self, settings: LdmSettings, device: torch.device) -> LdmSettings:
        """Load what is begun with, before all else; the settings as they are with it."""
        return settings

    def _latents(self, data: ImageTextData) -> Latents | Uncached:
        if isinstance(self.vae, IdentityAutoencoder):
            return Uncached(data)
        return cached_latents(self.vae, data, self.settings.data.cache_dir, digest=self.vae_digest)

    def _build(self) -> nn.Module:
        _, channels, size, _ = self.train_latents.shape
        width, learned = self.text_encoder.config.hidden_size, self.process.learned_variance
        if self.points:
            ends = self.process.timestep(torch.tensor([self.process.schedule.first_time, 1.0]))
            return build_mlp(self.settings.mlp, channels, width, learned, (ends[1] - ends[0]).item())
        return build_unet(self.settings.model, channels, size, width, learned)

    def _objective(self) -> LdmObjective:
        return LdmObjective(self.unet, self.text_encoder, self.process, self._alignment())

    def _kept(self) -> nn.Module:
        """What is saved, and averaged."""
        return nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder}) if self.trains_text else self.unet

    def _alignment(self) -> Alignment | None:
        options, data = self.settings.alignment, self.data.train
        if not options.weight:
            return None
        source = sibling(self.run, "clip") if options.source == "run" else Path(options.source)
        return Alignment(load_tower(source, data.resolution, data.channels), self.unet, options.weight)

    def _identity(self) -> dict[str, str]:
        """Digests of what is not in a checkpoint and yet decides the training; a text encoder that learns is in it."""
        named = identity_of(self.data.train, captions=not self.unconditional)
        named |= {"vae": self.vae_digest, "tokenizer": tokenizer_digest(self.tokenizer)}
        if self.data.mixture is not None:
            named["mixture"] = self.data.mixture.fingerprint
        if not self.trains_text:
            named["text"] = network_digest(self.text_encoder)
        if self.module.alignment is not None:
            named["tower"] = network_digest(self.module.alignment.tower)
        return named

    def batch(self, samples: list[Sample], rows: Rows) -> dict[str, Tensor]:
        seed = self.settings.seed
        indices = [sample.index for sample in samples]
        shape = self.train_latents.shape[1:]
        times = self.process.draw_times(rows.batch_size, generator_for(seed, 5, rows.step))
        made_up = self._made_up(rows, times)
        batch = {
            "latents": self._clean(indices, made_up, draw_rows(rows, shape, seed, 6)),
            "noise": draw_rows(rows, shape, seed, 7),
            "times": times[rows.start : rows.stop],
            "input_ids": self._tokens(self._said(samples, made_up)),
        }
        if (
            self.module.alignment is not None
            and rows.step < self.settings.alignment.until * self.settings.train.num_steps
        ):
            batch["images"] = to_images(np.stack(self._shown(indices, made_up)))
        return batch

    def _made_up(self, rows: Rows, times: Tensor) -> dict[int, Sample]:
        """Place in this process's batch -> the image of the mixture that stands there (`data.mixture`)."""
        if self.data.mixture is None:
            return {}
        options = self.settings.data.mixture
        rng = np.random.default_rng([self.settings.seed, 9, rows.step])
        chosen = (rng.random(rows.batch_size) < options.share) & (times.numpy() > options.above)
        indices = rng.integers(len(self.mixture), size=rows.batch_size)
        return {j - rows.start: Sample(int(indices[j]), rows.step) for j in range(rows.start, rows.stop) if chosen[j]}

    def _clean(self, indices: list[int], made_up: dict[int, Sample], noise: Tensor) -> Tensor:
        latents = self.train_latents.sample(indices, noise)
        if made_up:
            places = list(made_up)
            latents[places] = self.mixture_latents.sample([made_up[j].index for j in places], noise[places])
        return latents

    def _said(self, samples: list[Sample], made_up: dict[int, Sample]) -> list[str]:
        mixed = {j: self._caption(sample, self.mixture) for j, sample in made_up.items()}
        return [mixed[j] if j in mixed else self._caption(sample, self.data.train) for j, sample in enumerate(samples)]

    def _shown(self, indices: list[int], made_up: dict[int, Sample]) -> list[np.ndarray]:
        mixed = {j: self.mixture.image(sample.index) for j, sample in made_up.items()}
        return [mixed[j] if j in mixed else self.data.train.image(i) for j, i in enumerate(indices)]

    def _tokens(self, captions: list[str]) -> Tensor:
        """Token ids (B, L), or (1, L) where no caption differs from another."""
        return self.token_rows(captions[:1] if self.unconditional else captions)

    def _caption(self, sample: Sample, data: ImageTextData) -> str:
        """This epoch's caption, or the null caption: always when unconditional, else with `caption_dropout`."""
        if self.unconditional:
            return ""
        return caption_or_null(self.settings, data, sample)

    @torch.no_grad()
    def report(self, folder: Path, label: str) -> dict[str, float]:
        """A grid of fixed prompts, and the denoising loss on validation items, with noise and times fixed for good.

        Beside it that of as many training items under the same noise and times, and the gap between the two, over all
        times and in each quarter of them: what it has learned by heart.
        """
        (self._points() if self.points else self._grid()).save(folder / f"{label}.png")
        times, held_out = self._fixed_losses(self.validation_latents, self.data.validation)
        _, trained = self._fixed_losses(self.train_latents, self.data.train)
        count = min(len(held_out), len(trained))
        numbers = {"loss": held_out.mean().item(), "train_loss": trained.mean().item()}
        numbers["gap"] = numbers["loss"] - numbers["train_loss"]
        gaps, quarters = held_out[:count] - trained[:count], (times[:count] * QUARTERS).long().clamp(max=QUARTERS - 1)
        for k in quarters.unique().tolist():
            numbers[f"gap/{k / QUARTERS:.2f}-{(k + 1) / QUARTERS:.2f}"] = gaps[quarters == k].mean().item()
        return numbers | (self.watch(self._pipeline()) if self.watch else {})

    def _grid(self):
        prompts, each = self._prompts(), self.settings.sampling.per_prompt
        images = self._pipeline()(prompts, num_images_per_prompt=each, seed=0).images
        return sheet(images, each * (2 if len(prompts) > 4 else 1))

    def _points(self):
        generator = torch.Generator().manual_seed(0)
        found = self._pipeline()(
            "", None, None, 1.0, POINTS_SHOWN, generator, output_type="latent", batch_size=POINTS_SHOWN
        )
        return points_picture(found.images.flatten(1).float().cpu().numpy())

    def _fixed_losses(self, latents: Latents | Uncached, data: ImageTextData) -> tuple[Tensor, Tensor]:
        """Times and losses, (N,) each, of evenly spaced items; as many of each split, so that they share the noise."""
        most = min(self.validation_items, len(self.validation_latents))
        chosen, shape, device = spread(len(latents), most).tolist(), latents.shape[1:], self.unet.device
        times, losses = [], []
        for start in range(0, len(chosen), 64):
            indices = chosen[start : start + 64]
            generator = generator_for(0, 8, start)
            noise = torch.randn(2, len(indices), *shape, generator=generator)
            times.append(self.process.draw_times(len(indices), generator))
            captions = ["" if self.unconditional else caption_of(data, Sample(i, 0), 0) for i in indices]
            batch = (latents.sample(indices, noise[0]), noise[1], times[-1], self._tokens(captions))
            losses.append(self.module.losses(*(tensor.to(device) for tensor in batch))[0].cpu())
        return torch.cat(times), torch.cat(losses)

    def _prompts(self) -> list[str]:
        if self.unconditional:
            return [""] * 8
        if self.settings.sampling.prompts:
            return self.settings.sampling.prompts
        rng = np.random.default_rng(0)
        count = min(8, len(self.data.validation))
        return [self.data.validation.caption(int(i), rng) for i in rng.permutation(len(self.data.validation))[:count]]

    def _scheduler(self):
        chosen = self.settings.sampling
        return export_scheduler(self.settings.noise, chosen.sampler, chosen.time_grid, chosen.eta)

    def _pipeline(self):
        from ldm.pipelines.pipeline import Pipeline

        parts = (self.vae, self.text_encoder, self.tokenizer, self.unet, self._scheduler())
        return Pipeline(*parts, defaults=self.settings.sampling.model_dump(include=set(DEFAULTS)))

    def finish(self, folder: Path) -> None:
        """All five components, so that the run stands by itself whatever becomes of the runs it was made from."""
        for name, component in self._finished().components.items():
            if name == "tokenizer":
                save_tokenizer(component, folder / name)
            else:
                component.save_pretrained(folder / name)

    def _finished(self):
        """The pipeline that is kept."""
        return self._pipeline()
