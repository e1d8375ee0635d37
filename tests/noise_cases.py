"""Data, times and diffusers' schedulers for the tests of the noise process."""

import torch
from diffusers import DDPMScheduler

from ldm.diffusion.schedules import TABLES

PREDICTED = {"flow": "flow", "karras": "v_prediction", **dict.fromkeys(TABLES, "v_prediction")}
RANGES = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "cosine": (1e-4, 0.02)}
NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def pair(count=64):
    """x_0 and noise, (count, 4, 3, 3) each."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 4, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2)]


def theirs(name, **options):
    """The scheduler of diffusers for one of NAMES."""
    first, last = RANGES[name]
    return DDPMScheduler(beta_schedule=NAMES[name], beta_start=first, beta_end=last, **options)


def inner_times(count=400):
    """Times that are not at the ends."""
    return torch.linspace(0.002, 0.998, count, dtype=torch.float64)
