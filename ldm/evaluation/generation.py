"""Pictures of many prompts for the measurements, each from a seed of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ldm.utils.errors import UserError

AGREE, DISAGREE, UNJUDGED = "#1a9850", "#d73027", "#888888"  # frames on contact sheets


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn; None = the model's own settings."""

    steps: int | None = None
    guidance: float | None = None
    batch: int = 64  # pictures at once: memory, not results


def draw(pipeline, prompts: Sequence[str], seeds: Sequence[int], how: Drawing) -> np.ndarray:
    """One picture for each prompt and its seed: uint8 (n, h, w, channels).

    Raises: UserError for settings that the pipeline refuses.
    """
    try:
        images = pipeline(
            list(prompts),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=how.steps,
            guidance_scale=how.guidance,
            batch_size=how.batch,
            output_type="np",
        ).images
    except ValueError as error:
        raise UserError(str(error)) from None
    return (np.asarray(images) * 255).round().astype(np.uint8)
