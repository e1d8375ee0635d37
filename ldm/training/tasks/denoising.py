"""The training of the denoiser on cached latents, conditioned on text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.config.settings import LdmSettings
from ldm.data import (
    ImageTextData,
    Splits,
    apart,
    dataset_fingerprint,
    epoch_order,
    evenly_spaced_indices,
    sampling_weights,
)
from ldm.data.buckets import buckets_of, of_one_size
from ldm.models.digests import network_digest
from ldm.models.mlp import build_mlp
from ldm.models.representation_alignment import Alignment, load_tower
from ldm.models.saving import save_component
from ldm.models.tokenizer import TokenRows, save_tokenizer, tokenizer_digest
from ldm.models.unet import build_unet, check_halvings, choose_attention, inner_unet
from ldm.pipelines.model_folder import DEFAULTS
from ldm.pipelines.pipeline import Pipeline
from ldm.training.data_order import batch_noise, derive_seed, generator_for
from ldm.training.distributed import precision
from ldm.training.resident_latents import resident
from ldm.training.run_directory import sibling
from ldm.training.task import BatchSlice, SampleRef, captions_of, from_mixture
from ldm.training.tasks.components import Components, EncodedSplit, load_components, scheduler_of
from ldm.training.tasks.denoising_loss import DenoisingObjective, LdmObjective
from ldm.utils.image_grid import image_grid, points_image
from ldm.utils.image_sizes import resolution_of
from ldm.utils.image_tensors import to_images

QUARTERS = 4  # of the times, in which the gap between validation and training is logged
NUM_POINTS = 4096  # in the image of a report

Item = tuple[EncodedSplit, SampleRef]  # of a batch
Watch = Callable[[Pipeline], dict[str, float]]  # scores of a pipeline with the present weights


class LdmTask:
    """Trains a denoiser, and the text encoder too if asked: see `ldm.training.task.Task`.

    `denoising_task` makes one for a new model; `finetuning_task` and `distillation_task` start from a finished one.
    """

    channels_last = False  # measured: 0.75 times the images/s, for group norm on small maps

    def __init__(
        self,
        settings: LdmSettings,
        components: Components,
        objective: DenoisingObjective,
        *,
        fingerprints: dict[str, str] | None = None,
        exported: nn.Module | None = None,
        final_pipeline: Callable[[Pipeline, Path], Pipeline] | None = None,
        watch: Watch | None = None,
        validation_items: int = 512,
    ):
        """Args:
        objective: the denoiser, the text encoder of `components` and their loss.
        fingerprints: what -> digest, of the model that the training starts from.
        exported: what EMA follows, if not the denoiser and, where it learns, the text encoder.
        final_pipeline: (pipeline, the folder of finished components) -> the pipeline to save there.
        watch: its numbers go with those of every report.
        """
        self.settings, self.components, self.module = settings, components, objective
        self.final_pipeline, self.watch, self.validation_items = final_pipeline, watch, validation_items
        half = precision(settings.train.mixed_precision, components.device) != "no"
        if buckets_of(components.train.data) is not None:
            for size in components.train.latent_sizes + components.validation.latent_sizes:
                check_halvings(size, len(inner_unet(objective.unet).config.block_out_channels))
        choose_attention(objective.unet, settings.model.attention, components.device, half)
        self.model = exported or self._exported()
        self.fingerprints = self._fingerprints() | (fingerprints or {})
        self.process, self.aligned = objective.process, objective.alignment is not None
        self.token_rows = TokenRows(components.tokenizer)
        self.num_samples, self.weights = len(components.train.data), sampling_weights(components.train.data)
        self.buckets, self.order = buckets_of(components.train.data), epoch_order(components.train.data)
        if components.train.live:
            objective.vae = (components.vae,)
        sets = [split.latents for split in (components.train, components.mixture) if split is not None]
        on_device = resident(sets, components.device, settings.latents_on_device)
        self.resident = on_device is not None
        objective.resident = (on_device,)
        self.find_unused_parameters = self.aligned  # alignment stops before the training does
        self.copy_rate: Callable[[Pipeline], float] | None = None  # measures `validate`'s copies, where it is set

    def _exported(self) -> nn.Module:
        if not self.components.trains_text:
            return self.module.unet
        return nn.ModuleDict({"unet": self.module.unet, "text_encoder": self.module.text_encoder})

    def _fingerprints(self) -> dict[str, str]:
        """Digests of what is in no checkpoint and yet decides the training; a text encoder that learns is in one."""
        parts = self.components
        digests = dataset_fingerprint(parts.train.data, captions=not parts.unconditional)
        digests |= {"vae": parts.vae_digest, "tokenizer": tokenizer_digest(parts.tokenizer)}
        if parts.mixture is not None:
            digests["mixture"] = parts.mixture.data.fingerprint
        if not parts.trains_text:
            digests["text"] = network_digest(parts.text_encoder)
        if self.module.alignment is not None:
            digests["tower"] = network_digest(self.module.alignment.tower)
        return digests

    def __getstate__(self) -> dict:
        """What `batch` needs, for the data loader's workers."""
        needed = ["settings", "components", "process", "aligned", "token_rows"]
        needed += ["num_samples", "weights", "buckets", "order", "resident"]
        return {name: getattr(self, name) for name in needed}

    def batch(self, samples: list[SampleRef], rows: BatchSlice) -> dict[str, Tensor]:
        seed, shape = self.settings.seed, self.components.train.latents.shape_of(samples[0].index)
        times = self.process.draw_times(rows.batch_size, generator_for(seed, 5, rows.step))
        items, draw = self._mixed(samples, rows, times), batch_noise(rows, shape, seed, 6)
        live = self.components.train.live is not None
        pixels = self._images(items) if live else None  # before the captions: see `StreamedData`
        batch = {
            "latents": draw if live or self.resident else sample_latents(items, draw),
            "noise": batch_noise(rows, shape, seed, 7),
            "times": times[rows.start : rows.stop],
            "input_ids": self._input_ids(
                [(split.data, one) for split, one in items], seed, self.settings.caption_dropout
            ),
        }
        aligned_steps = self.settings.alignment.until * self.settings.train.num_steps
        if self.aligned and rows.step < aligned_steps:
            batch["images"] = self._images(items) if pixels is None else pixels
        if self.resident:
            batch["rows"] = torch.tensor([one.index + self._first_row(split) for split, one in items])
        return batch if pixels is None else batch | {"pixels": pixels}

    def _first_row(self, split: EncodedSplit) -> int:
        """Where a split begins among the latents on the device: those of the mixture are behind the data set's."""
        return 0 if split is self.components.train else self.num_samples

    def _images(self, items: list[Item]) -> Tensor:
        """Float32 (B, C, H, W) in [-1, 1]."""
        return to_images(np.stack([split.data.image(one.index) for split, one in items]))

    def _mixed(self, samples: list[SampleRef], rows: BatchSlice, times: Tensor) -> list[Item]:
        """The samples, some of them replaced by images of the mixture as `data.mixture` says; times: (batch_size,)."""
        train, mixture, options = self.components.train, self.components.mixture, self.settings.data.mixture
        items = [(train, sample) for sample in samples]
        if mixture is None:
            return items
        noisy = times.numpy() > options.above
        for j, sample in from_mixture(mixture.data, rows, options.share, self.settings.seed, noisy).items():
            items[j] = (mixture, sample)
        return items

    def _input_ids(self, items: list[tuple[ImageTextData, SampleRef]], seed: int = 0, dropout: float = 0.0) -> Tensor:
        """Token ids (B, L), or (1, L) of the null caption for an unconditional model, which looks at no caption."""
        return self.token_rows([""] if self.components.unconditional else captions_of(items, seed, dropout))

    @torch.no_grad()
    def report(self, folder: Path, label: str) -> dict[str, float]:
        """Images of fixed prompts, and the denoising loss on validation items with fixed noise and times.

        Beside it the loss on as many training items with the same noise and times, and the gap between the two, over
        all times and in each quarter of them: how far the model overfits.
        """
        (self._points_image() if self.components.points else self._image_grid()).save(folder / f"{label}.png")
        times, held_out = self.fixed_losses(self.components.validation)
        its_times, trained = self.fixed_losses(self.components.train)
        count = min(len(held_out), len(trained))
        numbers = {"loss": held_out.mean().item(), "train_loss": trained.mean().item()}
        numbers["gap"] = numbers["loss"] - numbers["train_loss"]
        quarters, its = ((t[:count] * QUARTERS).long().clamp(max=QUARTERS - 1) for t in (times, its_times))
        for k in sorted({*quarters.tolist()} & {*its.tolist()}):  # with buckets the splits share no times
            gap = held_out[:count][quarters == k].mean() - trained[:count][its == k].mean()
            numbers[f"gap/{k / QUARTERS:.2f}-{(k + 1) / QUARTERS:.2f}"] = gap.item()
        return numbers | (self.watch(self.pipeline()) if self.watch else {})

    def has_validation(self) -> bool:
        return apart(self.components.train.data, self.components.validation.data)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The denoising loss of `report`, and the copies among generated images."""
        _, losses = self.fixed_losses(self.components.validation)
        copies = {"copies": self.copy_rate(self.pipeline())} if self.copy_rate else {}
        return {"loss": losses.mean().item()} | copies

    def _image_grid(self) -> Image.Image:
        prompts, each = self._prompts(), self.settings.sampling.per_prompt
        images = self.pipeline()(prompts, num_images_per_prompt=each, seed=0).images
        return image_grid(images, each * (2 if len(prompts) > 4 else 1))

    def _points_image(self) -> Image.Image:
        sampling: dict[str, Any] = {
            "guidance_scale": 1.0,
            "num_images_per_prompt": NUM_POINTS,
            "batch_size": NUM_POINTS,
        }
        generator = torch.Generator().manual_seed(0)
        points = self.pipeline()("", generator=generator, output_type="latent", **sampling).images
        return points_image(points.flatten(1).float().cpu().numpy())

    def fixed_losses(self, split: EncodedSplit) -> tuple[Tensor, Tensor]:
        """Times and losses, (N,) each, of evenly spaced items; as many of each split, so that they share the noise."""
        limit = min(self.validation_items, len(self.components.validation.data))
        chosen, start = evenly_spaced_indices(len(split.data), limit), 0
        times, losses = [], []
        for indices in of_one_size(split.data, chosen, 64):
            generator = generator_for(0, 8, start)
            noise = torch.randn(2, len(indices), *split.latents.shape_of(indices[0]), generator=generator)
            start += len(indices)
            times.append(self.process.draw_times(len(indices), generator))
            latents = split.latents.sample(indices, noise[0])
            input_ids = self._input_ids([(split.data, SampleRef(i, 0)) for i in indices])
            batch = (latents, noise[1], times[-1], input_ids)
            on_device = (tensor.to(self.module.unet.device) for tensor in batch)
            losses.append(self.module.losses(*on_device)[0].cpu())
        return torch.cat(times), torch.cat(losses)

    def _prompts(self) -> list[str]:
        if self.components.unconditional:
            return [""] * 8
        if self.settings.sampling.prompts:
            return self.settings.sampling.prompts
        rng, data = np.random.default_rng(0), self.components.validation.data
        return [data.caption(int(i), rng) for i in rng.permutation(len(data))[:8]]

    def pipeline(self) -> Pipeline:
        """The model as it is now, sharing its weights."""
        parts = self.components
        networks = (parts.vae, self.module.text_encoder, parts.tokenizer, self.module.unet)
        defaults = self.settings.sampling.model_dump(include=set(DEFAULTS))
        return Pipeline(*networks, scheduler_of(self.settings), defaults=defaults)

    def finish(self, folder: Path) -> None:
        """All five components, so that the run stands by itself whatever becomes of the runs it was made from."""
        pipeline = self.pipeline()
        if self.final_pipeline is not None:
            pipeline = self.final_pipeline(pipeline, folder)
        for name, component in pipeline.components.items():
            if name == "tokenizer":
                save_tokenizer(component, folder / name)
            else:
                save_component(component, folder / name)


def denoising_task(
    settings: LdmSettings,
    data: Splits,
    run: Path,
    device: torch.device,
    watch: Watch | None = None,
    unet: nn.Module | None = None,
) -> LdmTask:
    """Train a new denoiser, of the settings' shape unless `unet` is given. Raises: see `load_components`."""
    components = load_components(settings, data, run, device)
    torch.manual_seed(derive_seed(settings.seed, 1))
    unet = build_denoiser(settings, components) if unet is None else unet
    alignment = build_alignment(settings, data.train, run, unet)
    objective = LdmObjective(unet, components.text_encoder, components.process, alignment)
    return LdmTask(settings, components, objective, watch=watch)


def build_denoiser(settings: LdmSettings, components: Components) -> nn.Module:
    """An untrained U-Net or MLP for the latents, the text encoder and the noise process of `components`."""
    channels, *size = components.train.latent_shape
    process, width = components.process, components.text_encoder.config.hidden_size
    if components.points:
        ends = process.timestep(torch.tensor([process.schedule.first_time, 1.0]))
        return build_mlp(settings.mlp, channels, width, process.learned_variance, (ends[1] - ends[0]).item())
    return build_unet(settings.model, channels, resolution_of(size), width, process.learned_variance)


def build_alignment(settings: LdmSettings, data: ImageTextData, run: Path, unet: nn.Module) -> Alignment | None:
    """What the U-Net's features are compared with, where `alignment.weight` asks for it."""
    options = settings.alignment
    if not options.weight:
        return None
    source = sibling(run, "clip") if options.source == "run" else Path(options.source)
    return Alignment(load_tower(source, data.resolution, data.channels), unet, options.weight)


def sample_latents(items: list[Item], noise: Tensor) -> Tensor:
    """A draw of each item's posterior, (B, c, h, w), with this standard normal noise of the same shape."""
    splits = {id(split): split for split, _ in items}
    if len(splits) == 1:
        return items[0][0].latents.sample([one.index for _, one in items], noise)
    latents = torch.empty_like(noise)
    for split in splits.values():
        at = [j for j, (one, _) in enumerate(items) if one is split]
        latents[at] = split.latents.sample([items[j][1].index for j in at], noise[at])
    return latents
