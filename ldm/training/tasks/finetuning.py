"""Trainings that start from a finished model: all of its U-Net goes on learning, or low-rank adapters beside it do.

The VAE and the tokenizer stay the model's, and so does the text encoder unless `text.train` or `start.lora_text` is
set. An adapter adds alpha / rank B A to a frozen weight W (out, in), with A (rank, in) drawn at random and B
(out, rank) zero at first, so that the first prediction is the model's.
Source: Hu et al. 2021, arXiv 2106.09685, section 4.1.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from ldm.config.settings import LdmSettings
from ldm.diffusion.process import NoiseProcess
from ldm.models.digests import network_digest
from ldm.models.lora import Adapter, adapters_of, add_adapters, merge, save_lora, without_adapters
from ldm.pipelines.diffusers_schedulers import process_of
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.pipeline import Pipeline
from ldm.training.tasks.denoising import LdmTask
from ldm.training.tasks.denoising_loss import LdmObjective
from ldm.utils.errors import UserError

TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def load_start(setting: str, source: str, process: NoiseProcess) -> Pipeline:
    """A finished run, an exported folder or a Hub id as a pipeline on the CPU, of the noise process given.

    Raises: UserError naming `setting` if it has no U-Net, or if the processes differ.
    """
    pipeline = load_pipeline(source, device="cpu", engine="torch")
    if not isinstance(pipeline.unet, UNet2DConditionModel):
        raise UserError(f"{setting}: {source} has a {type(pipeline.unet).__name__}; only a U-Net can be taught")
    its, t = process_of(pipeline.scheduler), torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    same = all(torch.allclose(a, b, atol=1e-3) for a, b in zip(its.scales(t), process.scales(t), strict=True))
    same &= (pipeline.unet.config.out_channels == 2 * pipeline.unet.config.in_channels) == process.learned_variance
    if not same or its.prediction_type != process.prediction_type:
        raise UserError(f"{setting}: {source} has another noise process: give this run the `noise` block it had")
    return pipeline


def begin(settings: LdmSettings) -> tuple[UNet2DConditionModel, LdmSettings]:
    """The U-Net of `start.model`, and the settings with that model's VAE and text encoder. Raises: see `load_start`."""
    begun = load_start("start.model", str(settings.start.model), NoiseProcess(**settings.noise.model_dump()))
    assert begun.folder is not None  # it was loaded from one
    folder = str(begun.folder.paths["unet"].parent)
    text = settings.text.model_copy(update={} if settings.text.source == "none" else {"source": folder})
    return begun.unet, settings.model_copy(update={"vae": folder, "text": text})


class FinetuneTask(LdmTask):
    """Teaches a finished model something more: see `ldm.training.task.Task`."""

    def _begin(self, settings: LdmSettings, device: torch.device) -> LdmSettings:
        self.begun, settings = begin(settings)
        self.rank = settings.start.lora_rank
        return settings

    def _build(self) -> UNet2DConditionModel:
        _, channels, size, _ = self.train_latents.shape
        if (self.begun.config.in_channels, self.begun.config.sample_size) != (channels, size):
            raise UserError(
                f"start.model has latents {self.begun.config.in_channels} x {self.begun.config.sample_size} x "
                f"{self.begun.config.sample_size}, these pictures {channels} x {size} x {size}: set data.resolution"
            )
        self.begun_digest = network_digest(self.begun)
        unet, start = self.begun.requires_grad_(True), self.settings.start
        return add_adapters(unet, start, start.lora_targets) if self.rank else unet

    def _objective(self) -> LdmObjective:
        if self.rank and self.settings.start.lora_text:
            add_adapters(self.text_encoder, self.settings.start, TEXT_TARGETS)
        return super()._objective()

    def _kept(self) -> nn.Module:
        if not self.rank:
            return super()._kept()
        learned = self.module.named_parameters()  # the adapters alone
        return nn.ParameterDict({name.replace(".", "/"): p for name, p in learned if p.requires_grad})

    def _identity(self) -> dict[str, str]:
        return super()._identity() | {"start": self.begun_digest}

    def _finished(self) -> Pipeline:
        pipeline = super()._finished()
        if self.rank:
            pipeline.unet, pipeline.text_encoder = map(without_adapters, (self.unet, self.text_encoder))
            merge(pipeline.components, self.adapters())
        return pipeline

    def finish(self, folder: Path) -> None:
        """As `LdmTask.finish`, with the adapters in the weights; the adapters by themselves go into lora/."""
        super().finish(folder)
        if self.rank:
            save_lora(self.adapters(), folder / "lora")

    def adapters(self) -> dict[str, Adapter]:
        """Copies of all adapters as they are now, on the CPU."""
        networks = {"unet": self.unet, "text_encoder": self.text_encoder}
        return {f"{part}.{name}": one for part, net in networks.items() for name, one in adapters_of(net).items()}
