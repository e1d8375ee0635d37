"""How strongly an adapter counts: a number, or by network, block and attention, as diffusers' `set_adapters` has it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ldm.pipelines.arguments import check_number

Weights = Mapping[str, float]  # start of a layer's name -> factor; of several starts the longest counts
PLACE = re.compile(
    r"(?P<part>text_encoder|unet)(?:(?<=unet)\.(?:(?P<mid>mid)|(?P<side>down|up)(?:\.block_(?P<block>\d+))?))?"
)


def weights_from(given: Any, unet: nn.Module | None = None) -> dict[str, float]:
    """One of `adapter_weights`: a number, or a dict; what a dict does not name is 1.

    {"text_encoder": 2, "unet": {"down": 0.5, "mid": 0, "up": {"block_1": [1, 0.3]}}}: of the text encoder, and of the
    U-Net's halves, blocks, and attentions of a block. `unet`: needed for a dict.
    Raises: ValueError for what the U-Net does not have.
    """
    found = {"": 1.0}
    for path, value in _leaves(given):
        start, name = _start(path), ".".join(("adapter_weights", *path))
        try:
            block = unet.get_submodule(start.partition(".")[2]) if unet and start.startswith("unet") else None
        except AttributeError:
            raise ValueError(f"{name}: the U-Net has no such block") from None
        if not isinstance(value, list | tuple):
            found[start] = check_number(name, value)
            continue
        count = len(getattr(block, "attentions", ()))
        if len(value) != count:
            raise ValueError(f"{name} must be a number or {count}, one for each attention there, got {len(value)}")
        found |= {f"{start}.attentions.{i}": check_number(name, each) for i, each in enumerate(value)}
    return found


def weight_of(layer: str, weights: Weights) -> float:
    """Of an adapter's layer; in kohya's files names have "_" for "."."""
    name = f"{layer}.".replace(".", "_")
    return weights[max((start for start in weights if name.startswith(_as_start(start))), key=len)]


def times(weights: Weights, factor: float) -> dict[str, float]:
    return {start: factor * weight for start, weight in weights.items()}


def _leaves(given: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(given, Mapping):
        for name, inner in given.items():
            yield from _leaves(inner, (*path, str(name)))
    else:
        yield path, given


def _start(path: tuple[str, ...]) -> str:
    """("unet", "up", "block_1") -> "unet.up_blocks.1"; () -> "". Raises: ValueError."""
    if not path:
        return ""
    if (found := PLACE.fullmatch(".".join(path))) is None:
        raise ValueError(
            f"adapter_weights must name text_encoder or unet, and of the U-Net down, mid or up and block_0 and so on "
            f"of these, got {'.'.join(path)}"
        )
    side = "mid_block" if found["mid"] else found["side"] and f"{found['side']}_blocks"
    return ".".join(each for each in (found["part"], side, found["block"]) if each)


def _as_start(start: str) -> str:
    return f"{start}.".replace(".", "_") if start else ""
