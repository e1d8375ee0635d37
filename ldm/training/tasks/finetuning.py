"""Trainings that start from a finished model: of its whole U-Net, or of low-rank adapters beside it.

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
from ldm.data import Splits
from ldm.diffusion.process import NoiseProcess
from ldm.models.digests import network_digest
from ldm.models.lora import adapters_of, add_adapters, merge, save_lora, without_adapters
from ldm.pipelines.diffusers_schedulers import process_of
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.pipeline import Pipeline
from ldm.training.data_order import derive_seed
from ldm.training.tasks.components import load_components
from ldm.training.tasks.denoising import LdmTask, Watch, build_alignment
from ldm.training.tasks.denoising_loss import LdmObjective
from ldm.utils.errors import UserError
from ldm.utils.image_sizes import size_of

TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def finetuning_task(
    settings: LdmSettings, data: Splits, run: Path, device: torch.device, watch: Watch | None = None
) -> LdmTask:
    """Continue the training of `start.model`, or train adapters for it. Raises: UserError if it does not fit."""
    unet, settings = initial_model(settings)
    components = load_components(settings, data, run, device)
    torch.manual_seed(derive_seed(settings.seed, 1))
    its, wanted = (unet.config.in_channels, *size_of(unet.config.sample_size or 0)), components.train.latent_shape
    if its != wanted:
        its_text, wanted_text = (" x ".join(map(str, shape)) for shape in (its, wanted))
        raise UserError(f"start.model has latents {its_text}, these images {wanted_text}: set data.resolution")
    fingerprints, start = {"start": network_digest(unet)}, settings.start
    unet.requires_grad_(True)
    if start.lora_rank:
        add_adapters(unet, start, start.lora_targets)
        if start.lora_text:
            add_adapters(components.text_encoder, start, TEXT_TARGETS)
    alignment = build_alignment(settings, data.train, run, unet)
    objective = LdmObjective(unet, components.text_encoder, components.process, alignment)
    adapted = {"exported": trained_parameters(objective), "final_pipeline": merged_pipeline} if start.lora_rank else {}
    return LdmTask(settings, components, objective, fingerprints=fingerprints, watch=watch, **adapted)


def initial_model(settings: LdmSettings) -> tuple[UNet2DConditionModel, LdmSettings]:
    """The U-Net of `start.model`, and the settings with that model's VAE and text encoder. Raises: see `load_start`."""
    pipeline = load_start("start.model", str(settings.start.model), NoiseProcess(**settings.noise.model_dump()))
    assert pipeline.folder is not None  # it was loaded from one
    folder = str(pipeline.folder.paths["unet"].parent)
    text = settings.text.model_copy(update={} if settings.text.source == "none" else {"source": folder})
    return pipeline.unet, settings.model_copy(update={"vae": folder, "text": text})


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


def trained_parameters(module: nn.Module) -> nn.ParameterDict:
    """All parameters with gradients, under their names with / for the dots that a dictionary refuses."""
    named = module.named_parameters()
    return nn.ParameterDict({name.replace(".", "/"): p for name, p in named if p.requires_grad})


def merged_pipeline(pipeline: Pipeline, folder: Path) -> Pipeline:
    """The pipeline with its adapters added to the weights; the adapters by themselves are saved in `folder`/lora."""
    networks = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    adapters = {f"{part}.{name}": one for part, net in networks.items() for name, one in adapters_of(net).items()}
    pipeline.unet, pipeline.text_encoder = map(without_adapters, networks.values())
    merge(pipeline.components, adapters)
    save_lora(adapters, folder / "lora")
    return pipeline
