"""Samples of a model by our own samplers, which take any time grid and any eta, in place of a diffusers scheduler."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.config.loading import load
from ldm.config.settings import SamplingOptions
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.sampling import prior, sample
from ldm.diffusion.time_grids import TIME_GRIDS
from ldm.models.latents import from_model_latents
from ldm.pipelines.diffusers_schedulers import process_of
from ldm.pipelines.pipeline import Pipeline


def process_and_settings(model: str, pipeline: Pipeline) -> tuple[NoiseProcess, SamplingOptions]:
    """The noise process a model was trained with, and how its run says to sample."""
    settings = Path(model) / "config.yaml"
    if not settings.is_file():  # exported: its scheduler knows the process
        return process_of(pipeline.scheduler), SamplingOptions()
    told = load("ldm", settings)
    return NoiseProcess(**told.noise.model_dump()), told.sampling


def sample_latents(
    pipeline: Pipeline,
    process: NoiseProcess,
    number: int,
    sampler: str,
    steps: int,
    grid: str,
    eta: float | None = None,
    prompt: str | None = None,
    negative: str | None = None,
    guidance: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Model latents (number, c, h, w), float32 on the CPU: sample i from seed + i.

    Args: names in `SAMPLERS` and `TIME_GRIDS`; the others as in `ldm.pipelines.pipeline.Pipeline`.
    Raises: ValueError naming what is not allowed.
    """
    shape = pipeline.latent_shape
    batch_size = batch_size or (4096 if shape[1:] == (1, 1) else 64)
    scale = pipeline.defaults["guidance_scale"] if guidance is None else guidance
    if prompt is None and negative is None:
        scale = 1.0
    interval, rescale = (pipeline.defaults.get(f"guidance_{name}") for name in ("interval", "rescale"))
    rule = Guidance(float(scale), tuple(interval or (0, 1)), rescale or 0.0)
    times = TIME_GRIDS[grid](process.schedule, steps)
    # a grid may start below t = 1, where the noise is less
    level = (process.schedule.norm(times[:1]) / process.schedule.norm(torch.ones_like(times[:1]))).item()

    results = []
    denoise = pipeline.denoiser(prompt or "", rule, negative or "", process)
    with torch.no_grad():
        for start in range(0, number, batch_size):
            count = min(batch_size, number - start)
            generators = [torch.Generator().manual_seed(seed + start + i) for i in range(count)]
            x = prior(process.schedule, (count, *shape), generators) * level
            x = x.to(pipeline.device, pipeline.dtype)
            results.append(sample(denoise, x, process.schedule, times, sampler, generators, eta).float().cpu())
    return torch.cat(results)


def to_array(pipeline: Pipeline, latents: Tensor) -> np.ndarray:
    """Points as float32 (n, d), pictures as uint8 (n, H, W, C)."""
    if pipeline.latent_shape[1:] == (1, 1):
        points = from_model_latents(latents.flatten(1), pipeline.networks.config("vae"))
        return points.numpy().astype(np.float32)
    with torch.no_grad():
        pixels = [pipeline.decode(part.to(pipeline.device)).cpu() for part in latents.split(64)]
    return (torch.cat(pixels).permute(0, 2, 3, 1) * 255).round().byte().numpy()
