"""Checks of what people pass to a pipeline: one readable ValueError that says what came and what is allowed."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.sampling import standard_normal

WHOLE: Any = Integral  # numpy's too
NUMBER: Any = Real
MOST_PIXELS = 2048  # of a side
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def check_dtype(value: Any) -> torch.dtype:
    """A floating-point dtype, or the one of such a name. Raises: ValueError."""
    found = DTYPES.get(value) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)} or a torch.dtype, got {value!r}")
    return found


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """`value` as an int from `least` to `most`. Raises: ValueError."""
    if isinstance(value, bool) or not isinstance(value, WHOLE) or value < least or (most and value > most):
        allowed = f"{least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number, {allowed}, got {value!r}")
    return int(value)


def check_side(name: str, value: Any, step: int) -> int:
    """`value` as an int, a multiple of `step` up to `MOST_PIXELS`. Raises: ValueError."""
    side = check_count(name, value, step, MOST_PIXELS)
    if side % step:
        below = side // step * step
        raise ValueError(f"{name} must be a multiple of {step}, got {side}: {below} and {below + step} are the nearest")
    return side


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


def prompts_of(prompt: Any, negative_prompt: Any, each: Any) -> tuple[list[str], list[str]]:
    """Both as lists of one text per image, `each` images of a prompt. Raises: ValueError."""
    each = check_count("num_images_per_prompt", each)
    prompts, negatives = check_texts("prompt", prompt), check_texts("negative_prompt", negative_prompt)
    if isinstance(negative_prompt, str) or negative_prompt is None:
        negatives = negatives * len(prompts)
    if len(negatives) != len(prompts):
        raise ValueError(f"negative_prompt must be one, or as many as prompts ({len(prompts)}), got {len(negatives)}")
    return [text for text in prompts for _ in range(each)], [text for text in negatives for _ in range(each)]


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
