"""Trainings that start from a finished model: all of its U-Net goes on learning, or low-rank adapters beside it do.

The VAE and the tokenizer stay the model's, and so does the text encoder unless `text.train` or `start.lora_text` is
set. An adapter adds alpha / rank B A to a frozen weight W (out, in), with A (rank, in) drawn at random and B
(out, rank) zero at first, so that the first prediction is the model's.
Source: Hu et al. 2021, arXiv 2106.09685, section 4.1.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ldm.config.settings import LdmSettings, StartOptions
from ldm.diffusion.process import NoiseProcess
from ldm.models.lora import Adapter, merge, save_lora
from ldm.pipelines.diffusers_schedulers import process_of
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.pipeline import Pipeline
from ldm.training.latent_cache import network_digest
from ldm.training.tasks.denoising import LdmObjective, LdmTask
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
    """Teaches a finished model something more: see `ldm.training.trainer.Task`."""

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


def add_adapters(network: nn.Module, options: StartOptions, targets: list[str]) -> nn.Module:
    """Freeze the network and put an adapter beside each layer whose name is, or ends with, one of the targets."""
    from peft import LoraConfig, inject_adapter_in_model

    network.requires_grad_(False)
    rank, alpha = options.lora_rank, options.lora_alpha
    try:
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="gaussian")
        inject_adapter_in_model(config, network)
    except ValueError as error:
        raise UserError(f"start.lora_targets {', '.join(targets)}: {str(error).splitlines()[0]}") from None
    return network


def adapters_of(network: nn.Module) -> dict[str, Adapter]:
    """Layer -> copy of its adapter in float32 on the CPU; {} where there are none."""

    def copied(layer: Any) -> Tensor:
        return layer["default"].weight.detach().float().cpu().clone()

    found = _adapted(network).items()
    return {name: Adapter(copied(one.lora_A), copied(one.lora_B), one.scaling["default"]) for name, one in found}


def without_adapters(network: nn.Module) -> nn.Module:
    """A copy with the layers that it had before `add_adapters`."""
    plain = copy.deepcopy(network)
    for name, layer in _adapted(plain).items():
        plain.set_submodule(name, layer.base_layer)
    return plain


def _adapted(network: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}
