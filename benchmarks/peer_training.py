"""diffusers' `train_text_to_image` as a program that halts after each step: the script itself, or its loop retold.

The script is not part of this repository; point `--peer-script` to a copy. It needs torchvision for its transforms:
where no build matches torch, `pip install --no-deps --target FOLDER torchvision` and `--torchvision FOLDER` do. The
loop retold uses the same stock modules in the same order, with the script's defaults, and Pillow for the transforms.
"""

import math
import sys
import types
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

Pause = Callable[[], None]


def script(path: Path, arguments: list[str]) -> Callable[[Pause], None]:
    """The unmodified script; its progress bar, which it updates last in each step, is where it halts."""

    def run(pause: Pause) -> None:
        module: Any = types.ModuleType("peer_script")
        SourceFileLoader(module.__name__, str(path)).exec_module(module)
        bar: Any = module.tqdm

        class HaltingBar(bar):
            def set_postfix(self, *args, **kwargs):
                super().set_postfix(*args, **kwargs)
                pause()

        module.tqdm = HaltingBar
        sys.argv = [str(path), *arguments]
        module.main()

    return run


def script_arguments(model: Path, pictures: Path, output: Path, batch_size: int, precision: str) -> list[str]:
    """The script's own defaults but for what the comparison fixes: task, batch, precision, seed, EMA."""
    options = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": pictures,
        "caption_column": "text",
        "output_dir": output,
        "cache_dir": output / "datasets",
        "resolution": 128,
        "train_batch_size": batch_size,
        "mixed_precision": precision,
        "max_train_steps": 10**6,
        "checkpointing_steps": 10**6,
        "seed": 0,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [*words, "--random_flip", "--use_ema"]


def retold(model: Path, pictures: Path, batch_size: int, precision: str, workers: int = 0) -> Callable[[Pause], None]:
    """The script's loop in few words: everything is decoded and encoded anew in each step, as there."""

    def run(pause: Pause) -> None:
        import torch
        import torch.nn.functional as F
        from accelerate import Accelerator
        from accelerate.utils import set_seed
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel
        from torch.utils.data import DataLoader
        from transformers import CLIPTextModel, CLIPTokenizer

        accelerator = Accelerator(mixed_precision=precision)
        set_seed(0)
        scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
        tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
        parts = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel}
        vae, text_encoder = (
            kind.from_pretrained(model, subfolder=name).requires_grad_(False).to(accelerator.device, dtype=half)
            for name, kind in parts.items()
        )
        unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet").train()
        ema = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        data = Photos(pictures, tokenizer)
        loader = DataLoader(data, batch_size, shuffle=True, num_workers=workers)
        rates = get_scheduler("constant", optimizer)
        unet, optimizer, loader, rates = accelerator.prepare(unet, optimizer, loader, rates)
        ema.to(accelerator.device)
        while True:
            for pixels, input_ids in loader:
                with accelerator.accumulate(unet):
                    latents = vae.encode(pixels.to(half)).latent_dist.sample() * vae.config.scaling_factor
                    noise = torch.randn_like(latents)
                    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),))
                    timesteps = timesteps.to(latents.device)
                    noisy = scheduler.add_noise(latents, noise, timesteps)
                    states = text_encoder(input_ids, return_dict=False)[0]
                    loss = F.mse_loss(unet(noisy, timesteps, states, return_dict=False)[0].float(), noise.float())
                    accelerator.gather(loss.repeat(batch_size)).mean().item()
                    accelerator.backward(loss)
                    accelerator.clip_grad_norm_(unet.parameters(), 1.0)
                    optimizer.step()
                    rates.step()
                    optimizer.zero_grad()
                ema.step(unet.parameters())
                loss.detach().item()
                pause()

    return run


class Photos:
    """Pictures, and tokens if there is a tokenizer, of a folder with metadata.jsonl, transformed as the script does."""

    def __init__(self, folder: Path, tokenizer, resolution: int = 128):
        from datasets import load_dataset

        table = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(folder.parent / "hf"))
        self.table, self.tokenizer, self.resolution = table, tokenizer, resolution

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int):
        row = self.table[i]
        if self.tokenizer is None:
            return self.transform(row["image"].convert("RGB"))
        text = self.tokenizer(
            row["text"], max_length=self.tokenizer.model_max_length, padding="max_length", truncation=True,
            return_tensors="pt",
        )  # fmt: skip
        return self.transform(row["image"].convert("RGB")), text.input_ids[0]

    def transform(self, image):
        return transformed(image, self.resolution)


def transformed(image, resolution: int):
    """Resize the shorter side (Lanczos), crop and flip at random, scale to [-1, 1]: a float tensor (3, H, W)."""
    import torch
    from PIL import Image

    factor = resolution / min(image.size)
    size = tuple(math.floor(side * factor) for side in image.size)
    image = image.resize((max(resolution, size[0]), max(resolution, size[1])), Image.Resampling.LANCZOS)
    left, top = (int(torch.randint(0, side - resolution + 1, ())) for side in image.size)
    image = image.crop((left, top, left + resolution, top + resolution))
    if torch.rand(()) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(resolution, resolution, 3)
    return pixels.permute(2, 0, 1).contiguous().float().div(255).sub(0.5).div(0.5)
