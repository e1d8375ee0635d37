"""What the figures draw from: glyphs of the table, the model, and the model as a denoise function."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ldm.autoencoder import to_images
from ldm.config import CaptionOptions, DataOptions, GlyphOptions
from ldm.data.glyphs import GlyphData, glyph_splits
from ldm.data.render import render, style_font
from ldm.figures import Setting
from ldm.guidance import guide
from ldm.noise import NoiseProcess, Schedule, Tabled
from ldm.pipeline import Pipeline, load_pipeline

Denoise = Callable[[Tensor, Tensor], Tensor]
# Captions for measuring: what most people would type.
CAPTIONS = CaptionOptions(meaning=0, style=0, strokes=0, shuffle=0, synonyms=0, plain=0, layout=1, radical=1)


def glyph(setting: Setting, character: str, resolution: int = 64) -> np.ndarray:
    """One character of the sans font, uint8 (resolution, resolution, 1)."""
    return render(style_font("hei"), character, resolution)[0][0, ..., None]


def glyphs(setting: Setting, split: str) -> GlyphData:
    """One split of the glyphs in the sans style; 256 training characters when quick."""
    options = GlyphOptions(styles=["hei"], limit=256 if setting.quick else 0, captions=CAPTIONS)
    return glyph_splits(DataOptions(glyphs=options, cache_dir=setting.cache_dir))[split]


def of_layouts(data: GlyphData, layouts: Sequence[str], each: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `each` glyphs of every layout: pictures uint8 (n, H, W), and the layout's place in `layouts` (n,)."""
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
    """Model latents (n, c, h, w), the posterior's mean, of uint8 pictures (n, H, W, C)."""
    parts = np.array_split(pictures, max(1, len(pictures) // batch_size))
    return torch.cat([pipeline.vae.encode(to_images(part)).latent_dist.mean for part in parts])


def process_of(scheduler) -> NoiseProcess:
    """The noise process that an exported scheduler was made for."""
    config = scheduler.config
    if config.get("use_flow_sigmas"):
        return NoiseProcess("flow", "flow", shift=config.flow_shift)
    process = NoiseProcess("linear", config.prediction_type)
    process.schedule = Tabled(scheduler.alphas_cumprod.double().numpy())
    return process


def denoiser(pipeline: Pipeline, prompts: Sequence[str], guidance: float = 1.0) -> tuple[Denoise, Schedule]:
    """(x_t (B, c, h, w), t scalar) -> x0_hat for B prompts, and the schedule it belongs to."""
    process = process_of(pipeline.scheduler)
    condition = pipeline.encode_prompt(prompts)
    negative = pipeline.encode_prompt([""] * len(prompts)) if guidance != 1 else None
    predict = guide(pipeline._predict, condition, negative, guidance)

    @torch.no_grad()
    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        times = t.expand(len(x_t))
        prediction = predict(process.network_input(x_t, times), process.timestep(times))
        return process.predict_x0(x_t, prediction, times)

    return denoise, process.schedule


def walk(denoise: Denoise, schedule: Schedule, x: Tensor, steps: int) -> Iterator[tuple[float, Tensor, Tensor]]:
    """From x, noise at t = 1, back to data in equal steps of DDIM: yields (t, x_t, x0_hat), at last (0, x_0, x_0)."""
    times = torch.linspace(1, 0, steps + 1)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x0_hat = denoise(x, t)
        yield float(t), x, x0_hat
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.scales(t), schedule.scales(s)
        x = alpha_s * x0_hat + sigma_s / sigma_t * (x - alpha_t * x0_hat)
    yield 0.0, x, x
