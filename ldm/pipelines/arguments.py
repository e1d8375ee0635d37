"""Checks of what people pass to a pipeline: one readable ValueError that says what came and what is allowed."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.sampling import standard_normal
from ldm.pipelines.image_shapes import WHOLE

NUMBER: Any = Real
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def check_dtype(value: Any) -> torch.dtype:
    """A floating-point dtype, or the one of such a name. Raises: ValueError."""
    found = DTYPES.get(value) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)} or a torch.dtype, got {value!r}")
    return found


def check_number(name: str, value: Any) -> float:
    """`value` as a float, of numpy's types too. Raises: ValueError."""
    if isinstance(value, bool) or not isinstance(value, NUMBER):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def check_fraction(name: str, value: Any) -> float:
    """`value` as a float from 0 to 1. Raises: ValueError."""
    if isinstance(value, bool) or not isinstance(value, NUMBER) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value!r}")
    return float(value)


def check_scale(name: str, value: Any) -> float:
    """`value` as a finite float, 0 or more. Raises: ValueError."""
    if isinstance(value, bool) or not isinstance(value, NUMBER) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number, 0 or more (1 = off), got {value!r}")
    return float(value)


def check_seed(value: Any, count: int = 1) -> int:
    """`value` as an int that is the first of `count` seeds. Raises: ValueError."""
    if isinstance(value, bool) or not isinstance(value, WHOLE) or not 0 <= value < 2**63 - count:
        raise ValueError(f"seed must be a whole number from 0 to 2**63, got {value!r}")
    return int(value)


def negatives_of(negative_prompt: Any, count: int) -> list[str]:
    """The negative prompts of `count` prompts; None = "". Raises: ValueError."""
    negatives = check_texts("negative_prompt", negative_prompt)
    if isinstance(negative_prompt, str) or negative_prompt is None:
        negatives = negatives * count
    if len(negatives) != count:
        raise ValueError(f"negative_prompt must be one, or as many as prompts ({count}), got {len(negatives)}")
    return negatives


def check_embeds(text: Any, given: Any) -> None:
    """Embeddings are (B, L, D) and stand alone. Raises: ValueError.

    Args: text: config of the text encoder; given: has a call's arguments.
    """
    width, most = text.hidden_size, text.max_position_embeddings
    for name in ("prompt", "negative_prompt"):
        embeds = getattr(given, f"{name}_embeds")
        if embeds is None:
            continue
        if getattr(given, name) is not None:
            raise ValueError(f"{name} and {name}_embeds cannot both be given: one is made of the other")
        if not isinstance(embeds, Tensor) or embeds.ndim != 3 or not len(embeds) or embeds.shape[2] != width:
            got = tuple(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
            raise ValueError(f"{name}_embeds must be a tensor (prompts, tokens, {width}), got {got}")
    if given.negative_prompt_embeds is None and given.prompt_embeds is not None and given.prompt_embeds.shape[1] > most:
        tokens = given.prompt_embeds.shape[1]
        raise ValueError(f"the text encoder takes {most} tokens, got {tokens}: give negative_prompt_embeds as long")


def lora_scale_of(cross_attention_kwargs: Any) -> float:
    """The factor in {"scale": factor}; None and {} are 1. Raises: ValueError for anything else."""
    given = {} if cross_attention_kwargs is None else cross_attention_kwargs
    if not isinstance(given, dict) or set(given) - {"scale"}:
        raise ValueError(f'cross_attention_kwargs must be {{"scale": number}}, the scale of adapters, got {given!r}')
    return check_number('cross_attention_kwargs["scale"]', given.get("scale", 1.0))


def check_texts(name: str, value: Any) -> list[str]:
    """One or several texts as a list; None is "". Raises: ValueError, also for text that UTF-8 cannot hold."""
    texts = [""] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a text, a list of texts, or None, got {value!r}")
    for text in texts:
        if not text.isprintable() and any(0xD800 <= ord(letter) < 0xE000 for letter in text):
            raise ValueError(f"{name} is not Unicode text, got {text!r}")
    return list(texts)


def initial_noise(
    shape: tuple[int, ...], latents: Any = None, generator: Any = None, seed: Any = None
) -> tuple[Tensor, Any]:
    """Standard normal noise of the shape (B, c, h, w), float32, and the generators for the noise after it.

    Args: as of `Pipeline.__call__`; at most one of seed and the two others. Raises: ValueError.
    """
    if seed is not None:
        if generator is not None or latents is not None:
            raise ValueError("seed must be None when generator or latents is given: they decide the noise")
        seed = check_seed(seed, shape[0])
        generator = [torch.Generator().manual_seed(seed + i) for i in range(shape[0])]
    _check_generators(generator, shape[0])
    if latents is None:
        return standard_normal(torch.empty(shape), generator), generator
    if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
        got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise ValueError(f"latents must be a tensor of shape {shape}, got {got}")
    return latents, generator


def _check_generators(generator: Any, count: int) -> None:
    given: Sequence[Any] = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(each, torch.Generator) for each in given):
        raise ValueError(f"generator must be a torch.Generator or a list of them, got {generator!r}")
    if isinstance(generator, list) and len(generator) != count:
        raise ValueError(f"generator must be one, or a list of {count} (one per image), got {len(generator)}")
