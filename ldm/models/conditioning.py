"""How text enters a U-Net: the settings of diffusers' `UNet2DConditionModel` that make it so.

Each is a function from `UNetModel` to those settings, whose name is a line of `ldm.config.settings.Conditioning`.
"""

from collections.abc import Callable
from typing import get_args

from ldm.config.settings import Conditioning, UNetModel


def cross_attention(model: UNetModel) -> dict:
    """Text features are keys and values at `attention_levels` and in the middle."""
    return {
        "down_block_types": _blocks(model, "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": _blocks(model, "CrossAttnUpBlock2D", "UpBlock2D")[::-1],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if model.mid_block else None,
        "attention_head_dim": model.heads,  # diffusers' name for the *number* of heads in these blocks
        "addition_embed_type": "text" if model.pooled_text else None,
    }


def modulation(model: UNetModel) -> dict:
    """Pooled text joins the time embedding, whose scale and shift follow every group norm (Perez et al. 2017, FiLM,
    arXiv 1709.07871; AdaGN of Dhariwal and Nichol 2021, arXiv 2105.05233, sec. 3.1). Attention is self-attention only.
    """
    return _self_attention(model) | {"addition_embed_type": "text"}


def concatenation(model: UNetModel) -> dict:
    """The U-Net within a `ldm.models.unet.ConcatenatedUNet`: it knows of no text itself."""
    return _self_attention(model) | {"addition_embed_type": None}


CONDITIONINGS: dict[str, Callable[[UNetModel], dict]] = {name: globals()[name] for name in get_args(Conditioning)}


def _self_attention(model: UNetModel) -> dict:
    return {
        "down_block_types": _blocks(model, "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": _blocks(model, "AttnUpBlock2D", "UpBlock2D")[::-1],
        "mid_block_type": "UNetMidBlock2D" if model.mid_block else None,
        "attention_head_dim": tuple(c // model.heads for c in model.block_out_channels),  # here it is a head's width
    }


def _blocks(model: UNetModel, attending: str, plain: str) -> tuple[str, ...]:
    return tuple(
        attending if level in model.attention_levels else plain for level in range(len(model.block_out_channels))
    )
