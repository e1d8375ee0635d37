"""The denoiser of images: (x (b, c, h, w), timestep, text features (b, L, D)) -> prediction.

A standard `UNet2DConditionModel` of diffusers, so that an export loads anywhere. Text enters it by cross-attention, or
by modulation alone: attention-pooled into the time embedding, which scales and shifts every residual block. With
concatenation, which no class of diffusers has, a map of pooled text joins the input.
"""

import logging
import math

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.embeddings import TextTimeEmbedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from jaxtyping import Float
from torch import Tensor, nn

from ldm.config.settings import UNetModel
from ldm.models.conditioning import CONDITIONINGS
from ldm.utils.errors import UserError
from ldm.utils.image_sizes import Size, size_of

log = logging.getLogger(__name__)


def build_unet(
    model: UNetModel, latent_channels: int, latent_size: int | Size, text_width: int, learned_variance: bool = False
) -> nn.Module:
    """A U-Net for latents (b, latent_channels, h, w) and text features (b, L, text_width).

    With `learned_variance` it has twice the output channels, the reverse variance in the second half.

    Args:
        latent_size: h = w, or (h, w): of the images that it makes unless others are asked for.
    Raises: UserError if the latents cannot be halved once per level below the first.
    """
    check_halvings(size_of(latent_size), len(model.block_out_channels))
    settings = {
        "sample_size": latent_size,
        "in_channels": latent_channels,
        "out_channels": latent_channels * (1 + learned_variance),
        "block_out_channels": tuple(model.block_out_channels),
        "layers_per_block": model.layers_per_block,
        "cross_attention_dim": text_width,
        "norm_num_groups": model.norm_num_groups,
        "dropout": model.dropout,
        "resnet_time_scale_shift": "scale_shift",
        "addition_embed_type_num_heads": math.gcd(text_width, 4),
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        **CONDITIONINGS[model.conditioning](model),
    }
    if model.conditioning == "concatenation":
        return ConcatenatedUNet(latent_channels, latent_size, text_width, settings)
    return UNet2DConditionModel(**settings)


def check_halvings(latent_size: Size, levels: int) -> None:
    """Raises: UserError if latents of this (h, w) cannot be halved once per level below the first."""
    height, width = latent_size
    if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):
        raise UserError(
            f"latents of {height} x {width} cannot be halved {levels - 1} times: use fewer model.block_out_channels, "
            "or another data.resolution or data.files.bucket_step"
        )


class ConcatenatedUNet(ModelMixin, ConfigMixin):
    """A U-Net whose input is x and, beside it, attention-pooled text as a constant map of `text_channels` channels."""

    @register_to_config
    def __init__(
        self, in_channels: int, sample_size: int | Size, text_width: int, inner: dict, text_channels: int = 16
    ):
        super().__init__()
        self.pool = TextTimeEmbedding(text_width, text_channels, num_heads=math.gcd(text_width, 4))
        self.unet = UNet2DConditionModel(**inner | {"in_channels": in_channels + text_channels})

    def forward(
        self,
        sample: Float[Tensor, "b c h w"],
        timestep: Tensor | float,
        encoder_hidden_states: Float[Tensor, "b L D"],
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Float[Tensor, "b c_out h w"]]:
        text = self.pool(encoder_hidden_states)[..., None, None].expand(-1, -1, *sample.shape[2:])
        return self.unet(
            torch.cat([sample, text.to(sample.dtype)], 1), timestep, encoder_hidden_states, return_dict=return_dict
        )


def inner_unet(denoiser: nn.Module) -> nn.Module:
    """The U-Net inside a `ConcatenatedUNet`; any other network itself."""
    return denoiser.unet if isinstance(denoiser, ConcatenatedUNet) else denoiser


def choose_attention(denoiser: nn.Module, wanted: str, device: torch.device, half: bool) -> str:
    """Set how attention is computed, and return it: 'xformers' where wanted or installed on CUDA, else 'sdpa'.

    On a CPU it is 'matmul' in half precision: there the backward of torch's fused attention takes five times as long
    in bf16, while in fp32 it makes training steps 1.07 times faster. A network without attention has 'none'.
    """
    unet = inner_unet(denoiser)
    if not isinstance(unet, UNet2DConditionModel):
        return "none"
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor() if half else AttnProcessor2_0())
        chosen = "matmul" if half else "sdpa"
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
