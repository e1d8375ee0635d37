"""What the figures are made from: glyphs of the table, the model, and the model as a denoise function."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ldm.apps.figures.figure import Setting
from ldm.config.settings import CaptionOptions, DataOptions, GlyphOptions
from ldm.data.glyphs.dataset import GlyphData, splits
from ldm.data.glyphs.rendering import render, style_font
from ldm.diffusion.sampling import Denoise
from ldm.diffusion.schedules import Schedule
from ldm.models.latents import posterior, to_model_latents
from ldm.pipelines.diffusers_schedulers import process_of
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.pipeline import Pipeline
from ldm.utils.image_tensors import to_images

# Captions for measuring: what most people would type.
CAPTIONS = CaptionOptions(meaning=0, style=0, strokes=0, shuffle=0, synonyms=0, plain=0, layout=1, radical=1)


def glyph(character: str, resolution: int = 64) -> np.ndarray:
    """One character of the sans font, uint8 (resolution, resolution, 1)."""
    return render(style_font("hei"), character, resolution)[0][0, ..., None]


def glyphs(setting: Setting, split: str, resolution: int = 64, styles: Sequence[str] = ("hei",)) -> GlyphData:
    """One split of the glyphs, in the sans style if no other is named; 256 training characters when quick."""
    options = GlyphOptions(styles=list(styles), limit=256 if setting.quick else 0, captions=CAPTIONS)
    return splits(DataOptions(glyphs=options, cache_dir=setting.cache_dir, resolution=resolution))[split]


def resolution_of(pipeline: Pipeline) -> int:
    """The side in pixels of the images that a model generates."""
    return pipeline.image_shape[1]


def of_layouts(data: GlyphData, layouts: Sequence[str], each: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `each` glyphs of every layout: images uint8 (n, H, W), and the layout's index in `layouts` (n,)."""
    found = [[i for i, (row, *_) in enumerate(data.items) if row.structure == name][:each] for name in layouts]
    labels = np.concatenate([np.full(len(indices), k) for k, indices in enumerate(found)])
    return np.stack([data.image(i)[..., 0] for indices in found for i in indices]), labels


@lru_cache(maxsize=1)
def _loaded(model: str | None) -> Pipeline:
    return load_pipeline(model, device="cpu")


def model(setting: Setting) -> Pipeline:
    """The model that the setting names, read once."""
    return _loaded(setting.model)


@torch.no_grad()
def encode(pipeline: Pipeline, pictures: np.ndarray, batch_size: int = 64) -> Tensor:
    """Model latents (n, c, h, w), the posterior's mean, of uint8 images (n, H, W, C)."""
    parts = np.array_split(pictures, max(1, len(pictures) // batch_size))
    vae = pipeline.networks.module("vae")
    return torch.cat([to_model_latents(posterior(vae, to_images(part)).mean, vae.config) for part in parts])


def denoiser(pipeline: Pipeline, prompts: Sequence[str], guidance: float = 1.0) -> tuple[Denoise, Schedule]:
    """(x_t (B, c, h, w), t) -> x0_hat for B prompts, and the schedule that the model was trained with."""
    return torch.no_grad()(pipeline.denoiser(prompts, guidance)), process_of(pipeline.scheduler).schedule
