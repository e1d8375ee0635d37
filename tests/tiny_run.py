"""A tiny run that really learned: bars of four colours, captions that name them, a VAE, a text tower and a U-Net."""

from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from ldm.config.settings import (
    ClipModel,
    ClipSettings,
    DataOptions,
    LdmSettings,
    OptimOptions,
    TrainOptions,
    VaeLoss,
    VaeModel,
    VaeSettings,
)
from ldm.data import Splits, build
from ldm.training.run_directory import record
from ldm.training.tasks.clip import ClipTask
from ldm.training.tasks.denoising import denoising_task
from ldm.training.tasks.vae import VaeTask
from ldm.training.trainer import Trainer

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 230), "white": (250, 250, 250)}
SIDE, ITEMS = 16, 240


def write_pictures(folder: Path, shuffled: bool = False) -> None:
    """A bar of one colour on black at a random even height, and its caption beside it; or the caption of another."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    names = [list(COLOURS)[i % len(COLOURS)] for i in range(ITEMS)]
    told = list(rng.permutation(names)) if shuffled else names
    for i, name in enumerate(names):
        picture = np.zeros((SIDE, SIDE, 3)) + rng.uniform(0, 20)
        top, tall = 2 * rng.integers(0, 5), 2 * rng.integers(2, 4)
        picture[top : top + tall, 2:14] = COLOURS[name]
        picture += rng.normal(0, 4, picture.shape)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"a {told[i]} bar")


def train_options(steps: int, batch: int) -> TrainOptions:
    return TrainOptions(
        num_steps=steps,
        batch_size=batch,
        sample_every=0,
        save_every=steps,
        log_every=50,
        mixed_precision="no",
        report_to=["none"],
        ema_decay=0.98,
    )


def data_options(project: Path) -> DataOptions:
    files = {"validation_fraction": 0.2}
    return DataOptions(
        source=str(project / "pictures"), resolution=SIDE, channels=3, cache_dir=project / "cache", files=files
    )


@torch.no_grad()
def start_as_means(vae) -> None:
    """Make an untrained AutoencoderKL the mean colour of 2 x 2 pixels and its brightness: it keeps the colours at once.

    Residual blocks add nothing. GroupNorm would take the level away: +-100 in each group, and x beside -x, keep it.
    """
    for name, value in vae.named_parameters():
        if "norm" not in name:
            value.zero_()
    copies, constant = torch.cat([torch.eye(3), -torch.eye(3)]), torch.tensor([100.0, -100.0]).repeat(2)
    ends = [6, 7, 14, 15]
    for half, codes in ((vae.encoder, copies), (vae.decoder, torch.cat([copies, torch.zeros(6, 1)], 1))):
        half.conv_in.weight[:6, :, 1, 1], half.conv_in.bias[ends] = codes, constant
        half.conv_norm_out.weight.fill_(50)
        half.conv_norm_out.bias.fill_(10)  # where silu is the identity
        half.conv_out.weight[:3, :3, 1, 1] = torch.eye(3)
        half.conv_out.bias[:3] = -10
    vae.encoder.conv_out.weight[3, :3, 1, 1], vae.encoder.conv_out.bias[3] = torch.full((3,), 1 / 3), -10
    vae.encoder.conv_out.bias[4:] = -10  # the posterior's log variance
    vae.encoder.down_blocks[0].downsamplers[0].conv.weight[:, :, :2, :2] = torch.eye(16)[..., None, None] / 4
    vae.decoder.up_blocks[0].upsamplers[0].conv.weight[:, :, 1, 1] = torch.eye(16)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight[:, :, 0, 0] = torch.eye(len(conv.weight))


def train_vae(project: Path, splits: Splits, steps: int = 100) -> Path:
    settings = VaeSettings(
        output_dir=project / "vae",
        data=data_options(project),
        model=VaeModel(block_out_channels=[16, 16], norm_num_groups=2, latent_channels=4),
        loss=VaeLoss(perceptual=0, kl=1e-4),
        train=train_options(steps, 16),
        optim=OptimOptions(lr=1e-6, warmup_steps=20),
    )
    task = VaeTask(settings, splits)
    start_as_means(task.model)
    (project / "vae").mkdir(parents=True, exist_ok=True)
    record(project / "vae", settings)
    Trainer(task, settings, project / "vae").fit()
    AcceleratorState._reset_state(reset_partial_state=True)
    return project / "vae"


def train_clip(project: Path, splits: Splits, steps: int = 100) -> Path:
    run = project / "clip"
    towers = {"width": 16, "layers": 1, "heads": 2, "vision_width": 16, "vision_layers": 1, "vision_heads": 2}
    settings = ClipSettings(
        output_dir=run,
        data=data_options(project),
        model=ClipModel(**towers, embed_dim=8, patch_size=8, vocab_size=560, context_length=8),
        train=train_options(steps, 32),
        optim=OptimOptions(lr=1e-2, warmup_steps=10),
    )
    run.mkdir(parents=True, exist_ok=True)
    record(run, settings)
    Trainer(ClipTask(settings, splits, run), settings, run).fit()
    AcceleratorState._reset_state(reset_partial_state=True)
    return run


def ldm_settings(project: Path, steps: int = 300, **changes) -> LdmSettings:
    values = {
        "output_dir": project / "ldm",
        "data": data_options(project),
        "train": train_options(steps, 32),
        "optim": OptimOptions(lr=3e-3, warmup_steps=20),
        "text": {"source": "new", "width": 16},
        "model": {
            "conditioning": "modulation",
            "block_out_channels": [16, 32],
            "norm_num_groups": 4,
            "attention_levels": [1],
            "heads": 2,
        },
        "sampling": {"num_inference_steps": 20, "guidance_scale": 2.0, "per_prompt": 1, "prompts": ["a red bar"]},
    }
    return LdmSettings(**{**values, **changes})


def train_ldm(settings: LdmSettings, splits: Splits) -> Path:
    torch.manual_seed(0)
    run = settings.output_dir
    run.mkdir(parents=True, exist_ok=True)
    task = denoising_task(settings, splits, run, torch.device("cpu"))
    record(run, settings)
    Trainer(task, settings, run).fit()
    AcceleratorState._reset_state(reset_partial_state=True)
    return run


def healthy_run(project: Path) -> Path:
    write_pictures(project / "pictures")
    splits = build(data_options(project))
    train_vae(project, splits)
    return train_ldm(ldm_settings(project), splits)
