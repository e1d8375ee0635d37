"""What people do with a trained model beside drawing: each verb is one call of a `Pipeline` that changes its `Walk`.

So every verb takes the pipeline's own options too (negative_prompt, num_inference_steps, guidance and its refinements,
seed or generator, num_images_per_prompt, output_type, callback, batch_size, sampler), and gives a `PipelineOutput`.

A picture is a path, a PIL image, or an array: uint8, bool or float 0 to 1, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
Any size and mode will do; it is brought to the model's square by `ldm.data.decoding.fit_image`.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldm.data.decoding import MAX_BYTES, ImageError, decode_image, fit_image
from ldm.diffusion.sampling import standard_normal
from ldm.models.latents import downsampling_factor
from ldm.pipelines.denoising_loop import Walk, backwards
from ldm.pipelines.pipeline import Pipeline, PipelineOutput, as_output
from ldm.utils.errors import UserError

Picture = str | Path | Image.Image | np.ndarray
Prompt = str | Sequence[str] | None
WEIGHTED = re.compile(r"\(([^()]*):\s*([+-]?\d+(?:\.\d+)?|[+-]?\.\d+)\s*\)")  # (words:1.3)
WORDS = ("linear", "slerp")


# ---- from a picture -------------------------------------------------------------------------------------------------


def image_to_image(
    pipeline: Pipeline,
    picture: Picture | Sequence[Picture],
    prompt: Prompt = None,
    strength: float = 0.7,
    resize: str = "pad",
    background: int = 255,
    **options,
) -> PipelineOutput:
    """Draw on from a picture: noise is put on its latents, and the last `strength` of the steps takes it off.

    Args:
        picture: one for all prompts, or a list of one for each.
        strength: 0 to 1. 0 gives the picture through the autoencoder, 1 forgets it and is plain drawing.
        resize, background: how the picture becomes the model's square, see `fit_image`; the grey level 0 to 255 of
            what is transparent or filled up.

    Raises: ValueError as the pipeline; UserError for a picture that cannot be read.
    Source: SDEdit, Meng et al. 2022, arXiv 2108.01073; as stock `StableDiffusionImg2ImgPipeline`, but that the latents
        are the posterior's mean, and for strength 1 (see `ldm.pipelines.denoising_loop.Walk`).
    """
    _check_share("strength", strength)
    known = pipeline.encode(_pixels(pipeline, picture, resize, background))
    return pipeline(prompt, change=lambda walk: replace(walk, known=_fill(known, walk), strength=strength), **options)


def inpaint(
    pipeline: Pipeline,
    picture: Picture,
    mask: Picture,
    prompt: Prompt = None,
    strength: float = 1.0,
    resample: int = 1,
    resize: str = "pad",
    background: int = 255,
    output_type: str = "pil",
    **options,
) -> PipelineOutput:
    """Draw what the mask shows in white, and keep the rest.

    After each step the known latents take the place of what was drawn there, with the noise of that level (the
    replacement of Song et al. 2021, arXiv 2011.13456, app. I.2, and of RePaint, Lugmayr et al. 2022, arXiv 2201.09865,
    eq. 8; the noise is the picture's own, as in stock legacy inpainting). A latent counts as drawn if the mask touches
    any of its pixels. The autoencoder would change the known pixels a little, so in the end they are pasted back:
    outside the mask the result is the picture, exactly. With output_type "latent" nothing is pasted.

    Args:
        mask: of the picture's size; more than half of white is drawn, the rest kept. See `box_mask`.
        resample: 1 or more times that each step is taken, see `Walk`; not with samplers of two calls a step.
        strength, resize, background: as in `image_to_image`; below 1 the old content shines through.

    Raises: ValueError as the pipeline, or for a mask of another size; UserError for a file that cannot be read.
    """
    _check_share("strength", strength)
    _check_count("resample", resample)
    sizes = [_read(each, 1, 0).shape[:2] for each in (picture, mask)]
    if sizes[0] != sizes[1]:
        (height, width), (high, wide) = sizes
        raise ValueError(f"the mask must have the picture's size {width} x {height}, got {wide} x {high}")
    pixels = _pixels(pipeline, picture, resize, background)
    drawn = _pixels(pipeline, mask, resize, 0).mean(1, keepdim=True) > 0.5
    known = pipeline.encode(pixels)
    free = torch.nn.functional.adaptive_max_pool2d(drawn.float(), known.shape[-2:]).bool().to(pipeline.device)

    def change(walk: Walk) -> Walk:
        return replace(walk, known=_fill(known, walk), strength=strength, free=_fill(free, walk), resample=resample)

    plain = output_type if output_type not in ("pil", "np") else "pt"
    images = pipeline(prompt, output_type=plain, change=change, **options).images
    if output_type == "latent":
        return PipelineOutput(images)
    return PipelineOutput(as_output(images.where(drawn.to(images.device), pixels.to(images.device)), output_type))


def box_mask(picture: Picture, box: Sequence[int]) -> np.ndarray:
    """A mask (H, W) for `inpaint`: white from left and top to before right and bottom, in the picture's pixels."""
    (height, width), (left, top, right, bottom) = _read(picture, 1, 0).shape[:2], box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"box must be left < right <= {width} and top < bottom <= {height}, got {tuple(box)}")
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def invert(
    pipeline: Pipeline,
    picture: Picture | Sequence[Picture],
    prompt: Prompt = "",
    rounds: int = 1,
    resize: str = "pad",
    background: int = 255,
    guidance_scale: float = 1.0,
    **options,
) -> Tensor:
    """The noise (B, c, h, w) from which `pipeline(prompt, latents=noise, sampler="ddim")` draws a picture again.

    Draw with the same prompt, steps and guidance. See `ldm.pipelines.denoising_loop.backwards`.

    Args:
        picture: as in `image_to_image`.
        prompt: what the picture shows. rounds: 1 or more; 1 is plain DDIM inversion, more invert its very steps where
            that converges.

    Raises: as `image_to_image`; UserError for a noise process without DDIM among stock schedulers.
    """
    _check_count("rounds", rounds)
    known = pipeline.encode(_pixels(pipeline, picture, resize, background))
    options |= {"guidance_scale": guidance_scale, "sampler": "ddim", "output_type": "latent"}
    take = partial(backwards, rounds=rounds)
    return pipeline(prompt, change=lambda walk: replace(walk, known=_fill(known, walk), take=take), **options).images


def edit(
    pipeline: Pipeline,
    picture: Picture | Sequence[Picture],
    prompt: str | Sequence[str],
    was: Prompt = "",
    rounds: int = 1,
    resize: str = "pad",
    background: int = 255,
    **options,
) -> PipelineOutput:
    """Draw a picture again with another prompt: its noise is found with what it was, and drawn from with `prompt`.

    Args:
        picture: as in `image_to_image`.
        was: what the picture shows, one for each prompt or one for all.
        rounds, resize, background: as in `invert`.

    Raises: as `invert`.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    told = [was or ""] * len(prompts) if was is None or isinstance(was, str) else was
    steps = {name: options[name] for name in ("num_inference_steps", "batch_size") if name in options}
    noise = invert(pipeline, picture, told, rounds, resize, background, **steps)
    return pipeline(prompts, latents=noise, sampler="ddim", **options)


# ---- between and around ---------------------------------------------------------------------------------------------


def interpolate(
    pipeline: Pipeline,
    first: str | None,
    second: str | None = None,
    frames: int = 9,
    seed: int = 0,
    last_seed: int | None = None,
    words: str = "linear",
    **options,
) -> PipelineOutput:
    """Pictures on the way from one prompt and seed to another; both ends are what the pipeline draws of them.

    Args:
        first, second: prompts, whose text states are mixed; None for the second = the same.
        frames: 2 or more.
        seed, last_seed: of the noise at both ends, mixed by `slerp`; None for the last = the same.
        words: how text states are mixed, "linear" or "slerp" (token by token).

    Raises: ValueError as the pipeline.
    """
    _check_count("frames", frames, 2)
    if words not in WORDS:
        raise ValueError(f"words must be one of {', '.join(WORDS)}, got {words!r}")
    shares = torch.linspace(0, 1, frames).tolist()
    mix: Callable[..., Tensor] = slerp if words == "slerp" else torch.lerp
    ends = [_noise(pipeline, each)[0] for each in (seed, seed if last_seed is None else last_seed)]
    noise = torch.cat([slerp(ends[0], ends[1], share, axes=3) for share in shares])
    states = pipeline.encode_prompt([first or "", (first if second is None else second) or ""]).split(1)

    def change(walk: Walk) -> Walk:
        return replace(walk, condition=torch.cat([mix(*states, share) for share in shares]))

    options |= {"num_images_per_prompt": frames, "latents": noise, "change": change}
    own = [_noise(pipeline, seed)[1] for _ in shares]
    return pipeline(second if first is None else first, generator=own, **options)


def vary(
    pipeline: Pipeline, prompt: str | None = None, seed: int = 0, amount: float = 0.3, number: int = 4, **options
) -> PipelineOutput:
    """Relatives of the picture of a seed: noise sqrt(1 - a^2) x + a n, of unit variance as x and n are.

    Args:
        amount: a, 0 to 1. 0 is the picture of `seed`, 1 those of the seeds after it.
        number: of pictures, the i-th with the noise n of seed + 1 + i.

    Raises: ValueError as the pipeline.
    """
    _check_share("amount", amount)
    _check_count("number", number)
    centre = _noise(pipeline, seed)[0]
    others = torch.cat([_noise(pipeline, seed + 1 + i)[0] for i in range(number)])
    noise = math.sqrt(1 - amount**2) * centre + amount * others
    own = [_noise(pipeline, seed)[1] for _ in range(number)]
    return pipeline(prompt, num_images_per_prompt=number, latents=noise, generator=own, **options)


def slerp(first: Tensor, second: Tensor, share: float, axes: int = 1) -> Tensor:
    """The point at `share`, 0 to 1, of the great arc between two vectors (the last `axes` axes are one vector).

    sin((1 - u) w) / sin(w) a + sin(u w) / sin(w) b with w the angle between a and b: vectors of one norm keep it, and
    vectors that are nearly parallel are mixed linearly. Source: Shoemake 1985, "Animating rotation with quaternion
    curves", sec. 3.3.
    """
    over, a, b = tuple(range(-axes, 0)), first.double(), second.double()
    lengths = a.square().sum(over, keepdim=True) * b.square().sum(over, keepdim=True)
    angle = ((a * b).sum(over, keepdim=True) / lengths.sqrt().clamp(min=1e-300)).clamp(-1, 1).acos()
    near = angle.sin() < 1e-6
    left, right = (
        ((part * angle).sin() / angle.sin().where(~near, 1.0)).where(~near, part) for part in (1 - share, share)
    )
    return (left * a + right * b).to(first.dtype)


# ---- words ----------------------------------------------------------------------------------------------------------


def compose(pipeline: Pipeline, terms: Sequence[tuple[str, float]], **options) -> PipelineOutput:
    """One picture that several prompts hold of: AND is a weight above 0, NOT one below.

    The prediction is that of the null caption (or negative prompt) plus guidance_scale times the sum of
    weight (its prediction - that of the null caption); so [(prompt, 1.0)] is plain drawing.

    Args:
        terms: (prompt, weight), one or more.

    Raises: ValueError as the pipeline, or if `weak` is given.
    Source: Liu et al. 2022, arXiv 2206.01714, eq. 11 and 12.
    """
    terms = [(text, float(weight)) for text, weight in terms]
    if not terms or not all(isinstance(text, str) and math.isfinite(weight) for text, weight in terms):
        raise ValueError(f"terms must be one or more of (prompt, finite weight), got {terms!r}")
    texts, weights = zip(*terms, strict=True)
    stacked = pipeline.encode_prompt(texts)[None]

    def change(walk: Walk) -> Walk:
        null = walk.negative
        if null is None:  # guidance 1 leaves it out, but the sum needs it
            null = pipeline.encode_prompt([""]).expand_as(walk.condition)
        return replace(walk, condition=stacked.expand(len(walk.noise), -1, -1, -1), negative=null, weights=weights)

    return pipeline(texts[0], change=change, **options)


@torch.inference_mode()
def weigh(pipeline: Pipeline, prompt: str | Sequence[str], **options) -> PipelineOutput:
    """Draw prompts in which "(water:1.3)" gives words a weight; see `weighted_states`. Raises: as the pipeline."""
    marked = [prompt] if isinstance(prompt, str) else list(prompt)
    states = torch.cat([weighted_states(pipeline, text) for text in marked])

    def change(walk: Walk) -> Walk:
        return replace(walk, condition=states.repeat_interleave(len(walk.noise) // len(marked), dim=0))

    return pipeline([parse_weights(text)[0] for text in marked], change=change, **options)


def weighted_states(pipeline: Pipeline, prompt: str) -> Tensor:
    """Text states (1, L, D) of a prompt with weights: to or from those of the prompt without the words.

    states + sum over the weighted words of (w - 1) (states - states without them), so 1 changes nothing, to the bit,
    and 0 takes the word for not said: no other token attends to it, and its own states are the null caption's. The
    common practices, scaling the states of the word's own tokens (from zero with the mean restored, or from the null
    caption), leave what the encoder has told later tokens of it, which in a short caption is nearly everything.
    """
    text, spans = parse_weights(prompt)
    states, null = pipeline.encode_prompt([text, ""]).split(1)
    length = pipeline.tokenizer.model_max_length
    padded = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    found = pipeline.tokenizer(text, return_offsets_mapping=True, verbose=False, **padded)
    starts, ends = found.offset_mapping[0].unbind(1)
    result = states
    for first, last, weight in spans:
        said = (starts < ends.clamp(max=last)) & (first < ends)  # special tokens are empty
        seen = (~said).long()[None].to(pipeline.device)
        without = pipeline.text_encoder(found.input_ids.to(pipeline.device), attention_mask=seen)[0].to(states.dtype)
        without = null.where(said.to(pipeline.device)[None, :, None], without)
        result = result + (weight - 1) * (states - without)
    return result


def parse_weights(prompt: str) -> tuple[str, list[tuple[int, int, float]]]:
    """'a (red:1.3) ball' as ('a red ball', [(2, 5, 1.3)]): start, end and weight. Other brackets stay as they are."""
    text, spans, after = "", [], 0
    for match in WEIGHTED.finditer(prompt):
        text += prompt[after : match.start()]
        spans.append((len(text), len(text) + len(match[1]), float(match[2])))
        text, after = text + match[1], match.end()
    return text + prompt[after:], spans


# ---- pictures in, and small change ----------------------------------------------------------------------------------


def _pixels(pipeline: Pipeline, picture: Picture | Sequence[Picture], resize: str, background: int) -> Tensor:
    """Pictures (n, C, H, W) in [0, 1], float32, as the model's autoencoder wants them."""
    height, width = (side * downsampling_factor(pipeline.vae.config) for side in pipeline.latent_shape[1:])
    if height != width:
        raise ValueError(f"pictures are brought to squares, and this model draws {width} x {height}")
    many: Sequence[Any] = picture if isinstance(picture, list | tuple) else [picture]
    read = [_read(each, pipeline.vae.config.in_channels, background) for each in many]
    square = np.stack([fit_image(each, height, resize, background) for each in read])
    return torch.from_numpy(square).permute(0, 3, 1, 2).float() / 255


def _read(picture: Picture, channels: int, background: int) -> np.ndarray:
    """uint8 (H, W, channels), upright. Raises: UserError, in one line, whatever the file holds."""
    name = picture if isinstance(picture, str | Path) else f"the {type(picture).__name__}"
    try:
        source = _ordinary(Path(picture)) if isinstance(picture, str | Path) else _encoded(picture)
        return decode_image(source, channels, background)
    except ImageError as error:
        raise UserError(f"{name} cannot be used: {error}; give a picture such as a PNG or JPEG") from None


def _ordinary(path: Path) -> Path:
    """The path, unless to read what is there would take forever."""
    if path.exists() and (not path.is_file() or path.stat().st_size > MAX_BYTES):
        raise ImageError(f"it is no file, or larger than {MAX_BYTES:,} bytes")
    return path


def _encoded(picture: Image.Image | np.ndarray) -> bytes:
    """A file of it without loss, so that one function decides what becomes of every mode."""
    buffer = io.BytesIO()
    try:
        image = Image.fromarray(_array(picture)) if isinstance(picture, np.ndarray) else picture
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data and not image.mode.startswith("I"):
            image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        elif image.mode not in ("1", "L", "RGB", "I", "F", "I;16"):
            image = image.convert("RGB")
        image.save(buffer, "TIFF")
    except (OSError, SyntaxError, TypeError, ValueError, AttributeError, Image.DecompressionBombError) as error:
        raise ImageError(" ".join(str(error).split())[:160] or type(error).__name__) from error
    return buffer.getvalue()


def _array(picture: np.ndarray) -> np.ndarray:
    """An array as uint8 (H, W) or (H, W, 3 or 4)."""
    if picture.dtype.kind == "f" and picture.size and not (picture.min() >= 0 and picture.max() <= 1):
        raise ImageError(f"float values must be from 0 to 1, got {picture.min():g} to {picture.max():g}")
    if picture.dtype.kind in "fb":
        picture = np.rint(picture * 255.0).astype(np.uint8)
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ImageError(f"an array must be uint8, bool or float, (H, W) or (H, W, 1, 3 or 4), got {picture.shape}")
    return picture[..., 0] if picture.shape[2:] == (1,) else picture


def _fill(rows: Tensor, walk: Walk) -> Tensor:
    """One row for each picture of the walk, from one for all or one for each prompt."""
    total = len(walk.noise)
    if total % len(rows):
        raise ValueError(f"pictures must be one, or one for each prompt, got {len(rows)} for {total} drawings")
    return rows.repeat_interleave(total // len(rows), dim=0)


def _noise(pipeline: Pipeline, seed: int) -> tuple[Tensor, torch.Generator]:
    """What the pipeline starts from for a seed, (1, c, h, w), and the generator after that."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2**63, got {seed!r}")
    generator = torch.Generator().manual_seed(seed)
    return standard_normal(torch.empty(1, *pipeline.latent_shape), generator), generator


def _check_count(name: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value!r}")
