"""Images of prompts: for every command, app and measurement that asks a model for some.

A job is a dict of all settings of an image, see `ldm.pipelines.image_metadata`; image i is generated from seed + i.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.pipelines.model_folder import ModelFolder
from ldm.pipelines.torch_free import TorchFreePipeline, open_torch_free
from ldm.utils.errors import UserError
from ldm.utils.terminal import LiveLine, bar, duration_text

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ldm.pipelines.denoising_loop import Callback

MAX_IMAGES = 4096  # in one call
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "C:/Windows/System32/nvcuda.dll")


def generate_images(pipeline: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The `images` of one call of a pipeline, or of an editing operation. Raises: UserError where it is refused."""
    try:
        return pipeline(*args, **options).images
    except ValueError as error:
        raise UserError(str(error)) from None


def generate_job(
    pipeline: Callable[..., Any], job: dict, count: int = 1, callback: "Callback | None" = None
) -> list["Image.Image"]:
    """`count` images with the settings of a job, of each prompt where job["prompt"] is a list. Raises: UserError."""
    return generate_images(
        pipeline,
        prompt=job["prompt"],
        negative_prompt=job["negative"],
        num_inference_steps=job["steps"],
        sampler=job["sampler"],
        guidance_scale=job["guidance"],
        guidance_interval=job["interval"],
        guidance_rescale=job["rescale"],
        cfg_zero=bool(job["cfg_zero"]),
        zero_init=job["zero_init"] or 0.0,
        weak=job["weak"],
        num_images_per_prompt=count,
        seed=job["seed"],
        height=job["height"],
        width=job["width"],
        callback=callback,
    )


def generate_with(
    folder: ModelFolder, job: dict, count: int = 1, device: str | None = None, callback: "Callback | None" = None
) -> list["Image.Image"]:
    """As `generate_job`, by the model in a folder; without torch where it can do the job. Raises: UserError."""
    return opened(folder, job, device)(job, count, callback)


def opened(folder: ModelFolder, job: dict, device: str | None = None) -> Callable[..., list["Image.Image"]]:
    """The model in a folder as a function of a job like this one, a count and a callback, see `generate_job`.

    Args:
        job: a complete one, whose prompt may be a list: of all the prompts that will be asked for.
    Raises: UserError.
    """
    model = open_torch_free(folder) if suits_torch_free(job) and not wants_gpu(device) else None
    if model is not None:
        return functools.partial(_without_torch, model)
    from ldm.models.lora_formats import as_options
    from ldm.pipelines.loading import load_pipeline

    return functools.partial(generate_job, load_pipeline(folder, device=device, **as_options(job["lora"])))


def _without_torch(
    model: TorchFreePipeline, job: dict, count: int = 1, callback: "Callback | None" = None
) -> list["Image.Image"]:
    from PIL import Image

    prompts = job["prompt"] if isinstance(job["prompt"], list) else [job["prompt"] or ""]
    scale = 1.0 if job["prompt"] is None and job["negative"] is None else float(job["guidance"])
    pixels = model.generate(
        [prompt for prompt in prompts for _ in range(count)],
        [job["negative"] or ""] * (count * len(prompts)),
        job["steps"],
        scale,
        tuple(job["interval"] or (0, 1)),
        job["seed"],
        None if callback is None else lambda step: callback(step, None, None),
    )
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in pixels]


def suits_torch_free(job: dict) -> bool:
    """Whether a complete job is in range and in reach of `torch_free`; the pipeline says what is wrong with others."""
    if any(job[name] for name in ("sampler", "weak", "lora", "cfg_zero", "zero_init", "rescale", "height", "width")):
        return False
    prompts = job["prompt"] if isinstance(job["prompt"], list) else [job["prompt"]]
    if any("\ud800" <= letter <= "\udfff" for text in (*prompts, job["negative"]) for letter in text or ""):
        return False  # no Unicode text
    first, last = job["interval"] or (0, 1)
    in_range = 1 <= job["steps"] <= 1000 and 0 <= job["guidance"] < math.inf and 0 <= first <= last <= 1
    return in_range and job["seed"] < 2**63 - MAX_IMAGES


def wants_gpu(device: str | None) -> bool:
    """Whether a GPU was asked for; or nothing was, and a driver for CUDA is here."""
    return device != "cpu" if device is not None else any(Path(place).exists() for place in GPU_DRIVERS)


@dataclass(frozen=True)
class SamplingOptions:
    """How images are generated; None = the model's own settings."""

    steps: int | None = None
    guidance: float | None = None
    batch_size: int = 64  # images at once: decides the memory, not the results
    interval: tuple[float, float] | None = None  # times at which to guide, see `Pipeline.__call__`

    def as_json(self) -> dict[str, Any]:
        """What decides the images; the batch size does not."""
        times = {} if self.interval is None else {"interval": list(self.interval)}
        return {"steps": self.steps, "guidance": self.guidance, **times}

    def over(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that hold, by the names they have among a model's defaults."""
        chosen = {
            "num_inference_steps": self.steps, "guidance_scale": self.guidance, "guidance_interval": self.interval
        }  # fmt: skip
        return {name: defaults.get(name) if value is None else value for name, value in chosen.items()}


def generate_pixels(
    pipeline: Callable[..., Any],
    prompts: Sequence[str],
    seeds: Sequence[int],
    options: SamplingOptions = SamplingOptions(),
) -> "np.ndarray":
    """One image for each prompt from its own seed: uint8 (n, h, w, channels). Raises: UserError where it is refused.

    On a terminal a line tells of the steps meanwhile, those of all batches together.
    """
    import numpy as np
    import torch

    start, done = time.monotonic(), 0

    def show(step: int, timestep: Any, latents: Any) -> None:
        nonlocal done
        done += 1
        steps = options.steps or pipeline.defaults["num_inference_steps"]  # type: ignore[attr-defined]
        total = max(done, steps * math.ceil(len(prompts) / options.batch_size))
        left = (time.monotonic() - start) / done * (total - done)
        live.show(f"{len(prompts)} images  {bar(done, total)}  {duration_text(left)} left")

    with LiveLine() as live:
        images = generate_images(
            pipeline,
            list(prompts),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            guidance_interval=options.interval,
            batch_size=options.batch_size,
            output_type="np",
            **({"callback": show} if live.visible else {}),
        )
    return (np.asarray(images) * 255).round().astype(np.uint8)
