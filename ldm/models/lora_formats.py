"""The names that other programs give to adapters: of diffusers and peft, old and new, and of kohya's scripts.

A file may also say how strongly its adapters are meant: alpha / rank, alpha / sqrt(rank) (rank-stabilized), or alpha by
layer. Formats whose update is no product of two matrices are named and refused. PATH[:SCALE] is how people name a file.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from ldm.utils.errors import UserError

_DOWN = r"lora_A|lora\.down|lora_linear_layer\.down|lora_down"
_UP = r"lora_B|lora\.up|lora_linear_layer\.up|lora_up"
_MATRIX = re.compile(rf"(?P<layer>[\w.]+?)\.((?P<down>{_DOWN})|{_UP})(\.default)?\.weight")
_OLD = re.compile(r"(?P<layer>[\w.]+)\.processor\.(?P<name>to_[qkv]|to_out)_lora\.((?P<down>down)|up)\.weight")
_ALPHA = re.compile(r"(?P<layer>[\w.]+)\.alpha")
_MAGNITUDE = re.compile(r"(?P<layer>[\w.]+?)\.(dora_scale|lora_magnitude_vector(\.default)?(\.weight)?)")
# start of a name -> start of ours; what is left of kohya's has "_" for "."
_STARTS = {
    "lora_unet_": "unet.",
    "lora_te_text_model_": "text_encoder.",
    "lora_te1_text_model_": "text_encoder.",
    "base_model.model.text_model.": "text_encoder.",
    "base_model.model.": "unet.",
    "text_encoder.text_model.": "text_encoder.",
    "unet.": "unet.",
    "text_encoder.": "text_encoder.",
    "text_model.": "text_encoder.",
    **{part: f"unet.{part}" for part in ("down_blocks.", "mid_block.", "up_blocks.")},
}
_OTHERS = {"hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "boft_": "BOFT", "lora_mid": "Tucker LoCon", "ia3_": "IA3"}
_ADVICE = "merge it into the model with the program that made it, or save it as LoRA"


def parse_key(key: str) -> tuple[str, str] | None:
    """A tensor's name as the layer, `unet.<layer>` or `text_encoder.<layer>`, and "down", "up", "alpha" or "magnitude".

    None for a tensor that is no part of an adapter.
    """
    if found := _OLD.fullmatch(key):
        name = found["name"] + (".0" if found["name"] == "to_out" else "")
        layer, side = f"{found['layer']}.{name}", "down" if found["down"] else "up"
    elif found := _MATRIX.fullmatch(key):
        layer, side = found["layer"], "down" if found["down"] else "up"
    elif found := _MAGNITUDE.fullmatch(key):
        layer, side = found["layer"], "magnitude"
    elif found := _ALPHA.fullmatch(key):
        layer, side = found["layer"], "alpha"
    else:
        return None
    start = next((start for start in _STARTS if layer.startswith(start)), None)
    return None if start is None else (_STARTS[start] + layer.removeprefix(start), side)


def refuse_other(key: str, path: object) -> None:
    """Raises: UserError naming the format that a tensor's name shows, where it is one that is not read."""
    for mark, name in _OTHERS.items():
        if mark in key:
            raise UserError(f"LoRA {path} is in the {name} format, which is not read here: {_ADVICE}")


def scale_of(layer: str, rank: int, alpha: Any, settings: Mapping[str, Any], path: object) -> float:
    """What B A is multiplied by.

    Args:
        alpha: beside the layer's matrices, or None; settings: those of peft for the whole network, as they were saved.

    Raises: UserError for an alpha that is no number, and for patterns of names that are regular expressions.
    """
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]+", name) for name in patterns):
        raise UserError(f"LoRA {path}: alpha_pattern must name layers, without wildcards; {_ADVICE}")
    name = layer.partition(".")[2]
    by_layer = [value for suffix, value in patterns.items() if f".{name}".endswith(f".{suffix}")]
    alpha = alpha if alpha is not None else by_layer[0] if by_layer else settings.get("lora_alpha")
    if alpha is None:
        return 1.0
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(f"LoRA {path}: lora_alpha must be a number, got {alpha!r}")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def split_scale(text: str) -> tuple[str, float]:
    """PATH[:SCALE] as both; the scale is 1 where none is given."""
    path, colon, number = text.rpartition(":")
    try:
        return (path, float(number)) if colon and path else (text, 1.0)
    except ValueError:
        return text, 1.0


def as_options(argument: str | None) -> dict[str, Any]:
    """PATH[:SCALE] as keyword arguments of `load_pipeline`; none for None."""
    return {} if argument is None else dict(zip(("lora", "lora_scale"), split_scale(argument)))
