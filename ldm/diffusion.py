"""The third part: a denoiser taught to undo noise on cached latents, told by text."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ldm.autoencoder import load_vae
from ldm.config import LdmSettings, TextOptions
from ldm.data import Splits, spread
from ldm.denoiser import build_unet, choose_attention
from ldm.errors import UserError
from ldm.latents import cached_latents, weights_digest
from ldm.noise import NoiseProcess
from ldm.runs import replace_text, sibling
from ldm.sheet import sheet
from ldm.text import caption_of, encode, load_text, null_text
from ldm.training import Rows, Sample, draw_rows, generator_for, mix

VALIDATION_ITEMS = 512


def find_text(options: TextOptions, run: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The text encoder and tokenizer that `text.source` names. Raises: UserError if there are none."""
    if options.source == "none":
        return null_text()
    if options.source.startswith("open_clip:"):
        from ldm.openclip import load_text_tower

        return load_text_tower(options.source)
    return load_text(sibling(run, "clip") if options.source == "run" else Path(options.source))


class LdmObjective(nn.Module):
    """U-Net, text encoder and noise process as one module: forward gives the denoising loss."""

    def __init__(self, unet: nn.Module, text_encoder: CLIPTextModel, process: NoiseProcess):
        super().__init__()
        self.unet, self.text_encoder, self.process = unet, text_encoder, process

    def forward(
        self, latents: Tensor, noise: Tensor, times: Tensor, input_ids: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Clean latents and noise (B, c, h, w), times (B,) in [0, 1), tokens (B, L) -> weighted mean squared error."""
        states = self.text_encoder(input_ids=input_ids).last_hidden_state
        x_t = self.process.corrupt(latents, noise, times)
        prediction = self.unet(x_t, self.process.timestep(times), states).sample.float()
        errors = (prediction - self.process.target(latents, noise, times)).square().mean((1, 2, 3))
        return (self.process.loss_weight(times) * errors).mean(), {}


class LdmTask:
    """Teaches a U-Net, and the text encoder too if asked: see `ldm.training.Task`."""

    find_unused_parameters = False
    channels_last = False  # measured: 0.75 times the images/s, for group norm on small maps

    def __init__(self, settings: LdmSettings, data: Splits, run: Path, device: torch.device):
        self.settings, self.data = settings, data
        self.unconditional = settings.text.source == "none"
        if self.unconditional and settings.text.train:
            raise UserError("text.train: true has nothing to train with text.source: none")
        self.vae = load_vae(sibling(run, "vae") if settings.vae == "run" else Path(settings.vae)).to(device)
        self.text_encoder, self.tokenizer = find_text(settings.text, run)
        self.text_encoder.requires_grad_(settings.text.train)
        self._pair(run)
        self.train_latents, self.validation_latents = (
            cached_latents(self.vae, split, settings.data.cache_dir) for split in (data.train, data.validation)
        )
        torch.manual_seed(mix(settings.seed, 1))
        shape = self.train_latents.mean.shape
        self.unet = build_unet(settings.model, shape[1], shape[2], self.text_encoder.config.hidden_size)
        choose_attention(self.unet, settings.model.attention, device)
        self.process = NoiseProcess(**settings.noise.model_dump())
        self.module = LdmObjective(self.unet, self.text_encoder, self.process)
        self.model = (
            nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder}) if settings.text.train else self.unet
        )
        self.num_samples = len(data.train)

    def _pair(self, run: Path) -> None:
        """Record which VAE, text encoder and tokenizer the run belongs to; refuse others once there is a checkpoint."""
        words = hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        parts = {"vae": weights_digest(self.vae), "text_encoder": weights_digest(self.text_encoder), "tokenizer": words}
        path = run / "parts.json"
        if path.exists() and (run / "checkpoints").exists():
            recorded = json.loads(path.read_text())
            for name, digest in parts.items():
                if recorded.get(name, digest) != digest and not (name == "text_encoder" and self.settings.text.train):
                    raise UserError(
                        f"{run} was trained with another {name} ({recorded[name][:12]}, now {digest[:12]}): "
                        "put the old one back, or start a new run with another --output-dir"
                    )
            return
        replace_text(path, json.dumps(parts, indent=1))

    def batch(self, samples: list[Sample], rows: Rows) -> dict[str, Tensor]:
        seed = self.settings.seed
        indices = [sample.index for sample in samples]
        shape = self.train_latents.mean.shape[1:]
        times = self.process.draw_times(rows.batch_size, generator_for(seed, 5, rows.step))
        return {
            "latents": self.train_latents.sample(indices, draw_rows(rows, shape, seed, 6)),
            "noise": draw_rows(rows, shape, seed, 7),
            "times": times[rows.start : rows.stop],
            "input_ids": encode(self.tokenizer, [self._caption(sample) for sample in samples]),
        }

    def _caption(self, sample: Sample) -> str:
        """This epoch's caption, or the null caption: always when unconditional, else with `caption_dropout`."""
        rng = np.random.default_rng([self.settings.seed, 4, sample.epoch, sample.index])
        if self.unconditional or rng.random() < self.settings.caption_dropout:
            return ""
        return caption_of(self.data.train, sample, self.settings.seed)

    @torch.no_grad()
    def report(self, folder: Path, label: str) -> dict[str, float]:
        """Denoising loss on validation items, with noise and times fixed once and for all; a grid of fixed prompts."""
        prompts = self._prompts()
        pipeline = self._pipeline()
        images = pipeline(prompts, num_images_per_prompt=self.settings.sampling.per_prompt, seed=0).images
        sheet(images, self.settings.sampling.per_prompt * (2 if len(prompts) > 4 else 1)).save(folder / f"{label}.png")
        return {"loss": self._validation_loss()}

    def _validation_loss(self) -> float:
        latents, total = self.validation_latents, 0.0
        chosen = spread(len(latents), VALIDATION_ITEMS).tolist()
        shape = latents.mean.shape[1:]
        device = self.unet.device
        for start in range(0, len(chosen), 64):
            indices = chosen[start : start + 64]
            generator = generator_for(0, 8, start)
            noise = torch.randn(2, len(indices), *shape, generator=generator)
            times = self.process.draw_times(len(indices), generator)
            captions = [
                "" if self.unconditional else caption_of(self.data.validation, Sample(i, 0), 0) for i in indices
            ]
            batch = (latents.sample(indices, noise[0]), noise[1], times, encode(self.tokenizer, captions))
            loss, _ = self.module(*(tensor.to(device) for tensor in batch), progress=0.0)
            total += loss.item() * len(indices)
        return total / len(chosen)

    def _prompts(self) -> list[str]:
        if self.unconditional:
            return [""] * 8
        if self.settings.sampling.prompts:
            return self.settings.sampling.prompts
        rng = np.random.default_rng(0)
        count = min(8, len(self.data.validation))
        return [self.data.validation.caption(int(i), rng) for i in rng.permutation(len(self.data.validation))[:count]]

    def _pipeline(self):
        from ldm.export import export_scheduler
        from ldm.pipeline import Pipeline

        parts = (self.vae, self.text_encoder, self.tokenizer, self.unet, export_scheduler(self.settings.noise))
        return Pipeline(
            *parts, defaults=self.settings.sampling.model_dump(include={"num_inference_steps", "guidance_scale"})
        )

    def finish(self, folder: Path) -> None:
        """All five components, so that the run stands by itself whatever becomes of the runs it was made from."""
        for name, component in self._pipeline().components.items():
            component.save_pretrained(folder / name)
