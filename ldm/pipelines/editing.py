"""Editing operations: what a trained model can do beside generating from a prompt. Each changes a `SamplingPlan`.

All take the pipeline's own options too (negative_prompt, num_inference_steps, guidance and its refinements, seed or
generator, num_images_per_prompt, output_type, callback, batch_size, sampler, height and width), but for those that an
operation decides itself, which it refuses by name; and give a `PipelineOutput`. An image is a path, a PIL image, an
array: uint8, bool or float 0 to 1, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), of any size; or such a tensor (C, H, W).
A batch, as output_type "np" and "pt" give it, counts as a list.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from types import MappingProxyType
from typing import Any, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from ldm.diffusion.sampling import standard_normal
from ldm.diffusion.schedules import in_double
from ldm.pipelines.arguments import check_fraction, check_seed
from ldm.pipelines.image_input import ImageInput, each_image, read_image, read_images
from ldm.pipelines.image_metadata import SIZE
from ldm.pipelines.image_shapes import check_count
from ldm.pipelines.pipeline import Pipeline, PipelineOutput, as_output

log = logging.getLogger(__name__)
Prompt = str | Sequence[str] | None
Operation = TypeVar("Operation", bound=Callable[..., PipelineOutput])
WEIGHTED = re.compile(r"\(([^()]*):\s*([+-]?\d+(?:\.\d+)?|[+-]?\.\d+)\s*\)")  # (words:1.3)
MIXES = ("linear", "slerp")
NOISE, COUNT = ("seed", "generator", "latents", "sampler"), "num_images_per_prompt"  # options


def _in_form(operation: Operation) -> Operation:
    """The operation with `return_dict`, as the pipeline has it: False = the tuple (images, None)."""

    @wraps(operation)
    def in_form(*args: Any, return_dict: bool = True, **options: Any) -> Any:
        output = operation(*args, **options)
        return output if return_dict else (output.images, None)

    return in_form  # type: ignore[return-value]


# ---- from an image --------------------------------------------------------------------------------------------------


@_in_form
def image_to_image(
    pipeline: Pipeline,
    picture: ImageInput | Sequence[ImageInput],
    prompt: Prompt = None,
    strength: float = 0.7,
    resize: str = "pad",
    background: int = 255,
    **options: Any,
) -> PipelineOutput:
    """Change an image by a prompt: noise is added to its latents, and the last `strength` of the steps removes it.

    Args:
        picture: one for all prompts, or a list of one for each.
        strength: 0 to 1. 0 gives the image through the autoencoder, 1 ignores it: plain generation.
        resize, background: how the image comes to the size that is generated, see `fit_image`; the grey level 0 to 255
            of what is transparent or filled up.

    Raises: ValueError as the pipeline; UserError for an image that cannot be read.
    Source: SDEdit, Meng et al. 2022, arXiv 2108.01073; as diffusers' `StableDiffusionImg2ImgPipeline`, but that the
        latents are the posterior's mean, and for strength 1 (see `ldm.pipelines.denoising_loop.SamplingPlan`).
    """
    strength = check_fraction("strength", strength)
    latents = pipeline.encode(read_images(pipeline, picture, resize, background, options))
    plan = pipeline.plan(prompt, **options)
    return pipeline.run(replace(plan, init_latents=plan.expand(latents), strength=strength))


@_in_form
def inpaint(
    pipeline: Pipeline,
    picture: ImageInput | Sequence[ImageInput],
    mask: ImageInput | Sequence[ImageInput],
    prompt: Prompt = None,
    strength: float = 1.0,
    resample: int = 1,
    resize: str = "pad",
    background: int = 255,
    output_type: str = "pil",
    **options: Any,
) -> PipelineOutput:
    """Generate where the mask is white, and keep the rest.

    After each step the known latents replace what was generated there, with the noise of that level (the replacement
    of Song et al. 2021, arXiv 2011.13456, app. I.2, and of RePaint, Lugmayr et al. 2022, arXiv 2201.09865, eq. 8; the
    noise is the image's own, as in diffusers' legacy inpainting). A latent counts as masked if the mask touches any of
    its pixels. The autoencoder would change the known pixels a little, so in the end they are pasted back: outside the
    mask the result is the image, exactly. With output_type "latent" nothing is pasted.

    Args:
        picture: as in `image_to_image`.
        mask: one for all images, or a list of one for each, of their size; more than half of white is generated, the
            rest kept. It may be of 0 and 1 too, as a file, an image or an array of any integers. See `box_mask`.
        resample: 1 or more times that each step is taken, see `SamplingPlan`; not with samplers of two calls a step.
        strength, resize, background: as in `image_to_image`; below 1 the old content shows through.

    Raises: ValueError as the pipeline, or for a mask of another size; UserError for a file that cannot be read.
    """
    strength, resample = check_fraction("strength", strength), check_count("resample", resample)
    pixels = read_images(pipeline, picture, resize, background, options)
    masks, pictures = each_image(mask), each_image(picture)
    if 1 not in (len(masks), len(pictures)) and len(masks) != len(pictures):
        raise ValueError(f"masks must be one, or one for each image, got {len(masks)} for {len(pictures)}")
    number = max(len(masks), len(pictures))
    each = zip(pictures * (number // len(pictures)), masks * (number // len(masks)), strict=True)
    masked = torch.cat([_masked(pipeline, *pair, resize, options) for pair in each])
    latents = pipeline.encode(pixels)
    coarse = adaptive_max_pool2d(masked.float(), latents.shape[-2:]).bool().to(pipeline.device)
    plan = pipeline.plan(prompt, output_type="pt" if output_type in ("pil", "np") else output_type, **options)
    known, free = plan.expand(latents), plan.expand(coarse)
    plan = replace(plan, init_latents=known, inpaint_mask=free, strength=strength, resample=resample)
    images = pipeline.run(plan).images
    if output_type == "latent":
        return PipelineOutput(images)
    masked, pixels = (plan.expand(rows.to(images.device)) for rows in (masked, pixels))
    return PipelineOutput(as_output(images.where(masked, pixels), output_type))


def _masked(pipeline: Pipeline, picture: ImageInput, mask: ImageInput, resize: str, size: Mapping[str, Any]) -> Tensor:
    """Which pixels are generated: bool (1, 1, H, W); `size`: see `read_images`. Raises: ValueError for another size."""
    levels = read_image(mask.astype(bool) if _is_binary(mask) else mask, 1, 0)
    height, width = read_image(picture, 1, 0).shape[:2]
    if levels.shape[:2] != (height, width):
        high, wide = levels.shape[:2]
        raise ValueError(f"the mask must have the picture's size {width} x {height}, got {wide} x {high}")
    levels = levels * 255 if levels.max() == 1 else levels
    levels_read = read_images(pipeline, levels, resize, 0, size)[:, :3]  # what else there is, is alpha
    masked = levels_read.mean(1, keepdim=True) > 0.5
    if not masked.any():
        log.warning("the mask is white nowhere, so nothing is generated: white is generated, black and clear are kept")
    return masked


def _is_binary(mask: ImageInput) -> TypeGuard[np.ndarray]:
    """Whether it is an array of integers of which none is anything but 0 and 1."""
    return isinstance(mask, np.ndarray) and mask.dtype.kind in "iu" and bool(((mask == 0) | (mask == 1)).all())


def box_mask(picture: ImageInput, box: Sequence[int]) -> np.ndarray:
    """A mask (H, W) for `inpaint`: white from left and top to before right and bottom, in the image's pixels."""
    (height, width), (left, top, right, bottom) = read_image(picture, 1, 0).shape[:2], box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"box must be left < right <= {width} and top < bottom <= {height}, got {tuple(box)}")
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def invert(
    pipeline: Pipeline,
    picture: ImageInput | Sequence[ImageInput],
    prompt: Prompt = "",
    rounds: int = 1,
    resize: str = "pad",
    background: int = 255,
    guidance_scale: float = 1.0,
    **options: Any,
) -> Tensor:
    """The noise (B, c, h, w) from which `pipeline(prompt, latents=noise, sampler="ddim")` generates an image again.

    Generate with the same prompt, steps and guidance. See `ldm.pipelines.denoising_loop.invert`.

    Args:
        picture: as in `image_to_image`.
        prompt: what the image shows. rounds: 1 or more; 1 is plain DDIM inversion, more invert its very steps where
            that converges.

    Raises: as `image_to_image`; UserError for a noise process without DDIM among the schedulers of diffusers.
    """
    options = _refuse("invert", "the steps are DDIM's and the noise is its result", options, *NOISE, "output_type")
    rounds = check_count("rounds", rounds)
    latents = pipeline.encode(read_images(pipeline, picture, resize, background, options))
    plan = pipeline.plan(prompt, guidance_scale=guidance_scale, sampler="ddim", **options)
    return pipeline.run(replace(plan, init_latents=plan.expand(latents), inverse=True, rounds=rounds)).images


@_in_form
def edit(
    pipeline: Pipeline,
    picture: ImageInput | Sequence[ImageInput],
    prompt: str | Sequence[str],
    was: Prompt = "",
    rounds: int = 1,
    resize: str = "pad",
    background: int = 255,
    **options: Any,
) -> PipelineOutput:
    """Generate an image again with another prompt, from the noise that `invert` finds with what it was.

    Args:
        picture: as in `image_to_image`.
        was: what the image shows, one for each prompt or one for all.
        rounds, resize, background: as in `invert`.

    Raises: as `invert`.
    """
    options = _refuse("edit", "the image decides the noise, and DDIM the steps", options, *NOISE, COUNT)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    old = [was or ""] * len(prompts) if was is None or isinstance(was, str) else was
    steps = {name: options[name] for name in ("num_inference_steps", "batch_size", *SIZE) if name in options}
    noise = invert(pipeline, picture, old, rounds, resize, background, **steps)
    return pipeline(prompts, latents=noise, sampler="ddim", **options)


# ---- between and around ---------------------------------------------------------------------------------------------


@_in_form
def interpolate(
    pipeline: Pipeline,
    first: str | None,
    second: str | None = None,
    frames: int = 9,
    seed: int = 0,
    last_seed: int | None = None,
    words: str = "linear",
    **options: Any,
) -> PipelineOutput:
    """Images between one prompt and seed and another; both ends are what the pipeline generates of them.

    Args:
        first, second: prompts, whose embeddings are mixed; None for the second = the same.
        frames: 2 or more.
        seed, last_seed: of the noise at both ends, mixed by `slerp`; None for the last = the same.
        words: how embeddings are mixed, "linear" or "slerp" (token by token).

    Raises: ValueError as the pipeline.
    """
    options = _refuse("interpolate", "frames, seed and last_seed say it", options, "generator", "latents", COUNT)
    frames = check_count("frames", frames, 2)
    if words not in MIXES:
        raise ValueError(f"words must be one of {', '.join(MIXES)}, got {words!r}")
    fractions = torch.linspace(0, 1, frames).tolist()
    mix: Callable[..., Tensor] = slerp if words == "slerp" else torch.lerp
    ends = [_noise(pipeline, each, options)[0] for each in (seed, seed if last_seed is None else last_seed)]
    plan = pipeline.plan(
        second if first is None else first,
        num_images_per_prompt=frames,
        latents=torch.cat([slerp(ends[0], ends[1], fraction, axes=3) for fraction in fractions]),
        generator=[_noise(pipeline, seed, options)[1] for _ in fractions],
        **options,
    )
    embeds = pipeline.encode_prompt([first or "", (first if second is None else second) or ""]).split(1)
    return pipeline.run(replace(plan, prompt_embeds=torch.cat([mix(*embeds, fraction) for fraction in fractions])))


@_in_form
def variations(
    pipeline: Pipeline, prompt: str | None = None, seed: int = 0, amount: float = 0.3, number: int = 4, **options: Any
) -> PipelineOutput:
    """Variations of the image of a seed: noise sqrt(1 - a^2) x + a n, of unit variance as x and n are.

    Args:
        amount: a, 0 to 1. 0 is the image of `seed`, 1 those of the seeds after it.
        number: of images, the i-th with the noise n of seed + 1 + i.

    Raises: ValueError as the pipeline.
    """
    options = _refuse("vary", "seed and number say it", options, "generator", "latents", COUNT)
    amount, number = check_fraction("amount", amount), check_count("number", number)
    centre = _noise(pipeline, seed, options)[0]
    others = torch.cat([_noise(pipeline, seed + 1 + i, options)[0] for i in range(number)])
    noise = math.sqrt(1 - amount**2) * centre + amount * others
    own = [_noise(pipeline, seed, options)[1] for _ in range(number)]
    return pipeline(prompt, num_images_per_prompt=number, latents=noise, generator=own, **options)


def slerp(first: Tensor, second: Tensor, share: float, axes: int = 1) -> Tensor:
    """The point at `share`, 0 to 1, of the great arc between two vectors (the last `axes` axes are one vector).

    sin((1 - u) w) / sin(w) a + sin(u w) / sin(w) b with w the angle between a and b: vectors of one norm keep it, and
    vectors that are nearly parallel are mixed linearly. Source: Shoemake 1985, "Animating rotation with quaternion
    curves", sec. 3.3.
    """
    over, a, b = tuple(range(-axes, 0)), in_double(first), in_double(second)
    lengths = a.square().sum(over, keepdim=True) * b.square().sum(over, keepdim=True)
    angle = ((a * b).sum(over, keepdim=True) / lengths.sqrt().clamp(min=1e-300)).clamp(-1, 1).acos()
    near = angle.sin() < 1e-6
    left, right = (
        ((part * angle).sin() / angle.sin().where(~near, 1.0)).where(~near, part) for part in (1 - share, share)
    )
    return (left * a + right * b).to(first)


# ---- prompts --------------------------------------------------------------------------------------------------------


@_in_form
def compose_prompts(pipeline: Pipeline, terms: Sequence[tuple[str, float]], **options: Any) -> PipelineOutput:
    """One image of several prompts: AND is a weight above 0, NOT one below.

    The prediction is that of the null caption (or negative prompt) plus guidance_scale times the sum of
    weight (its prediction - that of the null caption); so [(prompt, 1.0)] is plain generation.

    Args:
        terms: (prompt, weight), one or more.

    Raises: ValueError as the pipeline, or if `weak` is given.
    Source: Liu et al. 2022, arXiv 2206.01714, eq. 11 and 12.
    """
    texts, weights = _terms(terms)
    plan = pipeline.plan(texts[0], **options)
    null = plan.negative_prompt_embeds
    if null is None:  # guidance 1 leaves it out, but the sum needs it
        null = pipeline.encode_prompt("").expand_as(plan.prompt_embeds)
    embeds = pipeline.encode_prompt(texts)[None].expand(len(plan.noise), -1, -1, -1)
    return pipeline.run(replace(plan, prompt_embeds=embeds, negative_prompt_embeds=null, weights=weights))


def _terms(terms: Sequence[tuple[str, float]]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Prompts and weights. Raises: ValueError."""
    with suppress(TypeError, ValueError):  # of what is no pair, or no number
        pairs = [(text, float(weight)) for text, weight in terms]
        sound = not any(isinstance(term, str) for term in terms)  # a text of two letters is no pair
        if pairs and sound and all(isinstance(text, str) and math.isfinite(weight) for text, weight in pairs):
            return tuple(text for text, _ in pairs), tuple(weight for _, weight in pairs)
    raise ValueError(f"terms must be one or more of (prompt, finite weight), got {terms!r}")


@_in_form
def prompt_weighting(pipeline: Pipeline, prompt: str | Sequence[str], **options: Any) -> PipelineOutput:
    """Generate from prompts in which "(water:1.3)" gives words a weight. Raises: ValueError as the pipeline."""
    marked = [prompt] if isinstance(prompt, str) else list(prompt)
    plan = pipeline.plan([parse_weights(text)[0] for text in marked], **options)
    embeds = torch.cat([weighted_embeds(pipeline, text) for text in marked])
    return pipeline.run(replace(plan, prompt_embeds=plan.expand(embeds)))


vary, compose, weigh = variations, compose_prompts, prompt_weighting  # as the commands are called


@torch.no_grad()
def weighted_embeds(pipeline: Pipeline, prompt: str) -> Tensor:
    """Embeddings (1, L, D) of a prompt with weights: to or from those of the prompt without the words.

    embeds + sum over the weighted words of (w - 1) (embeds - embeds without them), so 1 changes nothing, to the bit,
    and 0 is the prompt without the words: no other token attends to them, and their own embeddings are the null
    caption's. The common practices, scaling the embeddings of the word's own tokens (from zero with the mean restored,
    or from the null caption), leave what later tokens have received from it, which in a short caption is nearly all.
    """
    text, spans = parse_weights(prompt)
    embeds, null = pipeline.encode_prompt([text, ""]).split(1)
    length = pipeline.tokenizer.model_max_length
    padded = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    tokens = pipeline.tokenizer(text, return_offsets_mapping=True, verbose=False, **padded)
    starts, ends = tokens.offset_mapping[0].unbind(1)
    result = embeds
    for first, last, weight in spans:
        inside = (starts < ends.clamp(max=last)) & (first < ends)  # special tokens are empty
        without = pipeline.networks.encode_text(tokens.input_ids, (~inside).long()[None]).to(embeds.dtype)
        without = null.where(inside.to(pipeline.device)[None, :, None], without)
        result = result + (weight - 1) * (embeds - without)
    return result


def parse_weights(prompt: str) -> tuple[str, list[tuple[int, int, float]]]:
    """'a (red:1.3) ball' as ('a red ball', [(2, 5, 1.3)]): start, end and weight. Other brackets stay as they are."""
    text, spans, after = "", [], 0
    for match in WEIGHTED.finditer(prompt):
        text += prompt[after : match.start()]
        spans.append((len(text), len(text) + len(match[1]), float(match[2])))
        text, after = text + match[1], match.end()
    return text + prompt[after:], spans


# ---- options --------------------------------------------------------------------------------------------------------


def _refuse(operation: str, reason: str, options: dict[str, Any], *names: str) -> dict[str, Any]:
    """The options without those named, which the operation decides. Raises: ValueError if one of them is given."""
    for name in names:
        if options.get(name) is not None:
            raise ValueError(f"{operation} takes no {name}: {reason}")
    return {name: value for name, value in options.items() if name not in names}


def _noise(
    pipeline: Pipeline, seed: int, options: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Tensor, torch.Generator]:
    """What the pipeline starts from for a seed and its options, (1, c, h, w), and the generator after that."""
    generator = torch.Generator().manual_seed(check_seed(seed))
    shape = pipeline.latent_shape_of(options.get("height"), options.get("width"))
    return standard_normal(torch.empty(1, *shape), generator), generator
