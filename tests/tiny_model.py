"""A random model of stock components, small enough to draw in milliseconds; shared by the pipeline's tests."""

import functools
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.config.settings import NoiseOptions
from ldm.hub.export import save_folder
from ldm.models.linear_autoencoder import build_linear
from ldm.models.lora import Adapter, save_lora
from ldm.pipelines.diffusers_schedulers import export_scheduler
from ldm.pipelines.onnx_export import write_graphs
from ldm.pipelines.pipeline import Pipeline

FLOW = NoiseOptions()
COSINE = NoiseOptions(process="cosine", prediction_type="v_prediction")
LENGTH = 16  # tokens


def tiny_tokenizer() -> CLIPTokenizer:
    """Every byte is a token, in the middle and at the end of a word."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=LENGTH)


def tiny_pipeline(noise: NoiseOptions = FLOW, channels: int = 1, pooled_text: bool = True) -> Pipeline:
    """16 x 16 pictures, 8 x 8 latents; weights from a fixed seed, large enough that the prompt matters."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=LENGTH,
                projection_dim=16,
                initializer_factor=20.0,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        vae = AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            mid_block_add_attention=False,
            scaling_factor=1.0,
            sample_size=16,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=16,
            norm_num_groups=4,
            resnet_time_scale_shift="scale_shift",
            addition_embed_type="text" if pooled_text else None,
            addition_embed_type_num_heads=2,
        )
    return Pipeline(vae, text_encoder, tokenizer, unet, export_scheduler(noise), {"num_inference_steps": 4})


def tiny_folder(folder: Path, noise: NoiseOptions = FLOW, **options) -> Path:
    """An exported folder of `tiny_pipeline`; each kind is built once in a process."""
    for name, content in _exported(noise.model_dump_json(), tuple(options.items())).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@functools.cache
def _exported(noise: str, options: tuple) -> dict[str, bytes]:
    """The files of such a folder by name."""
    with tempfile.TemporaryDirectory() as place:
        save_folder(tiny_pipeline(NoiseOptions.model_validate_json(noise), **dict(options)), Path(place), "tiny")
        paths = [path for path in Path(place).rglob("*") if path.is_file()]
        return {path.relative_to(place).as_posix(): path.read_bytes() for path in paths}


def linear_pipeline(channels: int = 1) -> Pipeline:
    """128 x 128 pictures and an AutoencoderTiny: 12 latent channels, 16 x 16 latents; U-Net and encoder as above."""
    pipeline = tiny_pipeline()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_linear(channels, factor=8, latent_channels=12, width=8, blocks=1)
        vae.decoder.layers[-1].weight.data *= 20  # mid grey with a spread: untrained ones are black
        vae.decoder.layers[-1].bias.data.fill_(0.5)
        unet = UNet2DConditionModel.from_config(pipeline.unet.config, sample_size=16, in_channels=12, out_channels=12)
    return Pipeline(vae, pipeline.text_encoder, pipeline.tokenizer, unet, pipeline.scheduler, pipeline.defaults)


def linear_folder(folder: Path, channels: int = 1, prompts: tuple[str, ...] = ()) -> Path:
    """An exported folder of `linear_pipeline`, with graphs for ONNX Runtime."""
    pipeline = linear_pipeline(channels)
    pipeline.defaults |= {"training": {"prompts": list(prompts)}}
    save_folder(pipeline, folder, "linear")
    write_graphs(pipeline, folder)
    return folder


def tiny_lora(folder: Path) -> Path:
    """Adapters for it, as a folder `lora` in `folder`: strong enough to be seen."""
    unet, generator = tiny_pipeline().unet, torch.Generator().manual_seed(0)
    out, into = unet.conv_in.weight.shape[:2]
    down, up = (torch.randn(shape, generator=generator) for shape in ((2, into, 3, 3), (out, 2, 1, 1)))
    return save_lora({"unet.conv_in": Adapter(down, up)}, folder / "lora").parent
