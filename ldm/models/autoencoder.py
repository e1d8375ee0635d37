"""The autoencoder: diffusers' `AutoencoderKL`, `VQModel` or `AutoencoderTiny`, with latents whitened in its weights.

Three spaces: images in [-1, 1]; raw latents, as the network was trained to use them; model latents, about N(0, 1) per
channel, which the denoiser sees. After training the change from raw to model latents is folded into `quant_conv` and
`post_quant_conv`, so encode and decode of the saved network speak model latents, and `scaling_factor` is 1. Latents of
a VQModel are its continuous vectors; decoding replaces them by the nearest codes. For the latents of an AutoencoderTiny
see `ldm.models.linear_autoencoder`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from ldm.config.settings import VaeModel
from ldm.diffusion.schedules import in_double
from ldm.models.latents import posterior, shift_factor
from ldm.models.linear_autoencoder import build_linear
from ldm.models.vector_quantizer import nearest
from ldm.utils.errors import UserError
from ldm.utils.untrusted_files import read_json, validated

Autoencoder: TypeAlias = AutoencoderKL | VQModel | AutoencoderTiny
CLASSES = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel, "AutoencoderTiny": AutoencoderTiny}


def build_vae(model: VaeModel, channels: int, resolution: int = 64) -> Autoencoder:
    """An untrained autoencoder: images (b, channels, H, W), latents (b, latent_channels, H / f, W / f).

    The encoder of kind linear is empty until `fit_encoder`.
    """
    if model.kind == "linear":
        width = model.block_out_channels[0]
        return build_linear(channels, model.factor, model.latent_channels, width, model.layers_per_block)
    levels = len(model.block_out_channels)
    shape = {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(model.block_out_channels),
        "layers_per_block": model.layers_per_block,
        "latent_channels": model.latent_channels,
        "norm_num_groups": model.norm_num_groups,
        "sample_size": resolution,
        "mid_block_add_attention": model.mid_attention,
        "scaling_factor": 1.0,
    }
    return VQModel(num_vq_embeddings=model.codebook_size, **shape) if model.kind == "vq" else AutoencoderKL(**shape)


def load_vae(folder: Path) -> Autoencoder:
    """The finished autoencoder of a run, or any folder with one of `CLASSES`, frozen.

    In float32, whatever it was saved in: many overflow in fp16, and a CPU has no fp16 convolutions worth the name.

    Raises: UserError if there is none.
    """
    for candidate in (folder / "final" / "vae", folder / "vae", folder):
        if (candidate / "config.json").is_file() and (candidate / "diffusion_pytorch_model.safetensors").is_file():
            try:
                name = str(read_json(validated(candidate) / "config.json").get("_class_name"))
                vae = CLASSES.get(name, AutoencoderKL).from_pretrained(candidate, use_safetensors=True)
            except UserError:
                raise
            except Exception as error:  # diffusers has many exceptions for a broken file
                raise UserError(f"the VAE in {candidate} cannot be read: {str(error).splitlines()[0]}") from error
            _to_unit_scale(vae)
            return vae.eval().requires_grad_(False)
    raise UserError(
        f"no finished VAE in {folder}: run `ldm train vae` first, or give --vae a folder that holds one "
        "(config.json and diffusion_pytorch_model.safetensors), or a Hub id such as stabilityai/sd-vae-ft-mse"
    )


def unfreeze(vae: Autoencoder) -> Autoencoder:
    """Make everything trainable that a training may change: of an AutoencoderTiny the decoder alone."""
    vae.requires_grad_(True)
    if isinstance(vae, AutoencoderTiny):
        vae.encoder.requires_grad_(False)
    return vae


def shape_of(vae: Autoencoder) -> VaeModel:
    """The settings that describe an autoencoder, also one of widths that they could not build."""
    config = vae.config
    tiny = isinstance(vae, AutoencoderTiny)
    shape = {
        "kind": "linear" if tiny else "vq" if isinstance(vae, VQModel) else "kl",
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.decoder_block_out_channels if tiny else config.block_out_channels),
    }
    if isinstance(vae, VQModel):
        shape["codebook_size"] = config.num_vq_embeddings
    return VaeModel.model_construct(**VaeModel().model_dump() | shape)


@torch.no_grad()
def latent_statistics(
    vae: Autoencoder, images: Iterator[Tensor]
) -> tuple[Float64[Tensor, " c"], Float64[Tensor, " c"]]:
    """Per-channel mean and std of latents sampled from the posterior.

    The variance is that of the mixture: variance of the posterior means plus the mean posterior variance. A VQModel
    gives one std for all channels, the root mean square: only that leaves each vector's nearest code the nearest.
    """
    first = second = torch.zeros(())
    count = 0.0
    for batch in images:
        q = posterior(vae, batch.to(vae.device, vae.dtype))
        mean = in_double(q.mean)
        first = first + mean.sum((0, 2, 3))
        second = second + (mean.square() + in_double(q.var)).sum((0, 2, 3))
        count += mean.numel() / mean.shape[1]
    mean = first / count
    variance = (second / count - mean.square()).clamp(min=0)
    if isinstance(vae, VQModel):
        variance = variance.mean().expand_as(variance)
    return mean.cpu(), variance.sqrt().cpu()


@torch.no_grad()
def fold_whitening(vae: Autoencoder, mean: Float[Tensor, " c"], std: Float[Tensor, " c"]) -> None:
    """Change the VAE, in place, so that its latents become (z - mean) / std; decoding undoes it exactly.

    quant_conv gives [mean, logvar] of the posterior: its first c rows are divided by std after taking mean off the
    bias, its last c biases fall by 2 log std. post_quant_conv takes z' = (z - mean) / std: W' = W std, b' = b + W mean.
    A VQModel's quant_conv gives the vector alone, and its codes move with it.
    """
    if (std <= 1e-6).any():
        dead = (std <= 1e-6).nonzero().flatten().tolist()
        raise UserError(f"latent channels {dead} are dead (std 0): train longer or lower loss.kl or loss.commitment")
    if isinstance(vae, VQModel) and not torch.allclose(std, std[:1]):
        raise ValueError("std must be one number for all channels of a VQModel, else other codes become the nearest")
    quant, post = vae.quant_conv, vae.post_quant_conv
    shift, scale = mean.to(quant.weight), std.to(quant.weight)
    c = len(scale)
    quant.bias[:c] = (quant.bias[:c] - shift) / scale
    quant.weight[:c] /= scale.view(-1, 1, 1, 1)
    if isinstance(vae, VQModel):
        codes = vae.quantize.embedding.weight
        codes.copy_((codes - shift.to(codes)) / scale.to(codes))
    else:
        quant.bias[c:] -= 2 * scale.log()
    post.bias += post.weight[:, :, 0, 0] @ shift
    post.weight *= scale.view(1, -1, 1, 1)


def _to_unit_scale(vae: Autoencoder) -> None:
    """Fold scaling and shift factors, of VAEs from elsewhere, into the weights, so that there is one latent space.

    Not of an AutoencoderTiny, which has no layer for it: `ldm.models.latents` applies its factors.
    """
    scale, shift = vae.config.scaling_factor, shift_factor(vae.config)
    if (scale == 1 and shift == 0) or isinstance(vae, AutoencoderTiny):
        return
    if vae.quant_conv is None or vae.post_quant_conv is None:
        raise UserError(
            "this VAE has a scaling factor and no quant convolutions to fold it into; use another, or train one"
        )
    ones = torch.ones(vae.config.latent_channels, dtype=torch.float64)
    fold_whitening(vae, shift * ones, ones / scale)
    vae.register_to_config(scaling_factor=1.0, shift_factor=None)


def code_counts(vae: VQModel, latents: Float[Tensor, "b c h w"]) -> Float32[Tensor, " K"]:
    """How often latents choose each code."""
    index = nearest(latents.movedim(1, -1).flatten(0, 2), vae.quantize.embedding.weight)
    return torch.bincount(index, minlength=vae.config.num_vq_embeddings).float()
