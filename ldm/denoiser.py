"""The denoiser: a stock `UNet2DConditionModel` with cross-attention, so that an export loads anywhere.

Text enters twice: through cross-attention at the chosen levels, and (with `pooled_text`) attention-pooled into the
time embedding, which scales and shifts every residual block. Both are stock diffusers options.
"""

import logging
import math

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from ldm.config import UNetModel
from ldm.errors import UserError

log = logging.getLogger(__name__)


def build_unet(model: UNetModel, latent_channels: int, latent_size: int, text_width: int) -> UNet2DConditionModel:
    """A U-Net for latents (B, latent_channels, latent_size, latent_size) and text states (B, L, text_width).

    Raises: UserError if the latents cannot be halved once per level below the first.
    """
    levels = len(model.block_out_channels)
    if latent_size % 2 ** (levels - 1):
        raise UserError(
            f"latents of {latent_size} x {latent_size} cannot be halved {levels - 1} times: use fewer "
            "model.block_out_channels, or another data.resolution"
        )
    crosses = [level in model.attention_levels for level in range(levels)]
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(model.block_out_channels),
        layers_per_block=model.layers_per_block,
        down_block_types=tuple("CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in crosses),
        mid_block_type="UNetMidBlock2DCrossAttn" if model.mid_block else None,
        up_block_types=tuple("CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(crosses)),
        attention_head_dim=model.heads,  # diffusers' name for the *number* of heads
        cross_attention_dim=text_width,
        norm_num_groups=model.norm_num_groups,
        dropout=model.dropout,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text" if model.pooled_text else None,
        addition_embed_type_num_heads=math.gcd(text_width, 4),
        flip_sin_to_cos=True,
        freq_shift=0,
    )


def choose_attention(unet: UNet2DConditionModel, wanted: str, device: torch.device) -> str:
    """Set how attention is computed, and return it: 'xformers' where asked for or found on CUDA, else 'sdpa'.

    On a CPU it is 'matmul': there the backward of torch's fused attention takes five times as long in bf16.
    """
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())
        chosen = "matmul"
    elif wanted == "sdpa":
        return "sdpa"
    else:
        try:
            unet.enable_xformers_memory_efficient_attention()
            return "xformers"
        except (ImportError, ValueError, NotImplementedError, RuntimeError) as error:
            reason, chosen = str(error).split("\n")[0], "sdpa"
    if wanted == "xformers":
        reason = "it needs CUDA" if device.type == "cpu" else reason
        log.warning("attention: xformers cannot be used here (%s); using %s", reason, chosen)
    return chosen
