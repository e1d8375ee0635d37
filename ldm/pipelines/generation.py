"""Images of prompts, for every command and measurement that asks a pipeline for some."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from ldm.pipelines.denoising_loop import Callback
    from ldm.pipelines.pipeline import PipelineOutput


def generate_images(pipeline: "Callable[..., PipelineOutput]", *args, **options) -> Any:
    """The `images` of one call of a pipeline, or of an editing operation. Raises: UserError where it is refused."""
    try:
        return pipeline(*args, **options).images
    except ValueError as error:
        raise UserError(str(error)) from None


def generate_job(
    pipeline: "Callable[..., PipelineOutput]", job: dict, count: int, callback: "Callback | None" = None
) -> list["Image.Image"]:
    """`count` images with the settings of a `job` (see `image_metadata`), the i-th from job["seed"] + i."""
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
        callback=callback,
    )
