"""Prompt to images, over the model folder that diffusers' `StableDiffusionPipeline` reads, with the same arithmetic.

Text is padded to the tokenizer's length and used without an attention mask; the null caption is "". Model latents have
about unit variance; `vae.config.scaling_factor` is honoured. The scheduler may be replaced by any of
`ldm.pipelines.component_classes.CLASSES`.
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from torch import Tensor, nn

from ldm.diffusion.guidance import Guidance, guide
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.sampling import denoise_with
from ldm.models.latents import from_model_latents, posterior, to_model_latents
from ldm.models.lora import digest_with
from ldm.pipelines.adapters import LoadedAdapters
from ldm.pipelines.arguments import (
    DTYPES,
    check_dtype,
    check_embeds,
    check_fraction,
    check_number,
    check_scale,
    check_texts,
    initial_noise,
    lora_scale_of,
    negatives_of,
)
from ldm.pipelines.component_classes import stock_class
from ldm.pipelines.denoising_loop import Callback, SamplingPlan, denoise, invert
from ldm.pipelines.diffusers_methods import DiffusersMethods, check_absent
from ldm.pipelines.diffusers_schedulers import (
    check_same_process,
    check_scheduler,
    check_steps,
    process_of,
    warn_of_changes,
    with_sampler,
)
from ldm.pipelines.image_shapes import check_count, image_shape, latent_shape, resized, size_step
from ldm.pipelines.model_folder import COMPONENTS, FALLBACKS, ModelFolder
from ldm.pipelines.networks import NETWORKS, Networks, OnDisk, run_unet
from ldm.pipelines.onnx_runtime import Engine
from ldm.pipelines.step_callbacks import OnStepEnd, Session, check_tensor_inputs
from ldm.pipelines.textual_inversion import with_all_vectors
from ldm.pipelines.torch_free import CUT
from ldm.utils.image_sizes import downsampling_factor

log = logging.getLogger(__name__)
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
Network: TypeAlias = nn.Module | OnDisk
Weak: TypeAlias = "Pipeline | nn.Module | str | Path | None"


@dataclass
class PipelineOutput(BaseOutput):
    """`output.images`, `output["images"]` and `output[0]` are the same, as in diffusers.

    Attributes: images: list of PIL images, numpy (B, H, W, C) or torch (B, C, H, W) in [0, 1], or latents (B, c, h, w);
    nsfw_content_detected: None, there is no safety checker.
    """

    images: Any
    nsfw_content_detected: None = None


class Pipeline(DiffusersMethods):
    """The five components of a latent diffusion model, and how images are generated with them.

    `vae`, `text_encoder` and `unet` are torch modules and may be changed or replaced. Where ONNX Runtime computes for
    one of them, asking for it is what ends that (see `ldm.pipelines.networks`): from then on it runs in torch. A
    `scheduler` of diffusers may be put in place of the model's: one that cannot generate with it is a ValueError, and
    of one of another noise process a warning is logged.

    Attributes: tokenizer (of transformers, replaceable), defaults (a dict with num_inference_steps and guidance_scale),
    folder (where it came from, or None), lora (the adapters of `load_pipeline` and how strongly, or None), adapters
    (those of `load_lora_weights`), load_weak (path -> the weak model there, or None).
    """

    def __init__(
        self,
        vae: Network,
        text_encoder: Network,
        tokenizer: Any,
        unet: Network,
        scheduler: Any,
        defaults: dict | None = None,
        folder: ModelFolder | None = None,
        engine: Engine | None = None,
        fixed: bool = False,
        **absent: Any,
    ):
        """`engine`, `fixed`: see `Networks`; `load_pipeline` chooses them.

        `absent`: the other components of diffusers' pipelines. Raises: ValueError where one would change images.
        """
        check_absent(absent)
        self.networks = Networks({"vae": vae, "text_encoder": text_encoder, "unet": unet}, engine, fixed)
        self.tokenizer, self._scheduler, self._own_scheduler, self.folder = tokenizer, scheduler, scheduler, folder
        self.defaults = {**FALLBACKS, **(defaults or {})}
        self.lora: tuple[str | Path, float] | None = None
        self.adapters = LoadedAdapters()
        self.load_weak: Callable[[str | Path, Pipeline], Pipeline] | None = None

    # ---- components -------------------------------------------------------------------------------------------------

    @property
    def vae(self) -> Any:
        return self.networks.hand_out("vae")

    @vae.setter
    def vae(self, module: nn.Module) -> None:
        self.networks = self.networks.replaced("vae", module)

    @property
    def text_encoder(self) -> Any:
        return self.networks.hand_out("text_encoder")

    @text_encoder.setter
    def text_encoder(self, module: nn.Module) -> None:
        self.unload_lora_weights()
        self.networks = self.networks.replaced("text_encoder", module)

    @property
    def unet(self) -> Any:
        return self.networks.hand_out("unet")

    @unet.setter
    def unet(self, module: nn.Module) -> None:
        self.unload_lora_weights()
        self.networks = self.networks.replaced("unet", module)

    @property
    def scheduler(self) -> Any:
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        check_scheduler(scheduler, self._own_scheduler)
        warn_of_changes(scheduler, self._own_scheduler)
        self._scheduler = scheduler

    @property
    def components(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COMPONENTS}

    @property
    def engines(self) -> dict[str, str]:
        """What each network runs in now, "torch" or "onnx"."""
        return self.networks.engines

    @property
    def device(self) -> torch.device:
        return self.networks.device

    @property
    def dtype(self) -> torch.dtype:
        return self.networks.dtype()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image's latents."""
        return latent_shape(self.networks.config("unet"))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return image_shape(self.networks.config("vae"), self.networks.config("unet"))

    @property
    def size_step(self) -> int:
        """What heights and widths are multiples of: the VAE's factor, times 2 for each halving in the U-Net."""
        return size_step(self.networks.config("vae"), self.networks.config("unet"))

    def image_shape_of(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, H, W) of an image of this size in pixels, None = the model's. Raises: ValueError."""
        return resized(self.image_shape, self.size_step, height, width)

    def latent_shape_of(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(c, h, w) of the latents of such an image. Raises: ValueError."""
        _, *sides = self.image_shape_of(height, width)
        rows, columns = (side // downsampling_factor(self.networks.config("vae")) for side in sides)
        return self.latent_shape[0], rows, columns

    @property
    def digest(self) -> str:
        """The model folder's digest, with that of the adapters; "" for a pipeline put together from objects."""
        adapters = self.adapters.digest()
        return sha256((self._digest + adapters).encode()).hexdigest()[:16] if adapters else self._digest

    @cached_property
    def _digest(self) -> str:
        digest = self.folder.digest() if self.folder else ""
        return digest_with(digest, *self.lora) if self.lora else digest

    def to(
        self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | str | None = None
    ) -> "Pipeline":
        """Move and cast the three networks in place; returns itself.

        Args: a device, a dtype or its name ("float16"), or both; `to(torch.float16)` is a dtype.
        Raises: ValueError for another dtype, before anything is changed.
        """
        if isinstance(device, torch.dtype) or device in DTYPES:
            device, dtype = None, device
        dtype = None if dtype is None else check_dtype(dtype)
        stays = device is None or torch.device(device) == self.device
        if stays and dtype in (None, self.dtype) and "onnx" in self.engines.values():
            return self
        wanted = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
        for name in NETWORKS:
            self.networks.hand_out(name).to(**wanted)
        return self

    # ---- generating -------------------------------------------------------------------------------------------------

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | Guidance | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, float] | None = None,
        guidance_rescale: float | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        seed: int | None = None,
        callback: Callback | None = None,
        batch_size: int = 64,
        guidance_interval: tuple[float, float] | None = None,
        cfg_zero: bool = False,
        zero_init: float = 0.0,
        weak: Weak = None,
        sampler: str | None = None,
    ) -> Any:
        """Generate images: a `PipelineOutput`, or a tuple.

        The arguments up to `callback_on_step_end_tensor_inputs` are those of diffusers.

        Args:
            prompt: one or several; None or "" alone is the trained null caption. None also turns guidance off (unless
                a negative prompt or embeddings are given).
            height, width: of the images in pixels, multiples of `size_step` up to 2048; None = the model's. Images far
                from the sizes that a model was trained on have faults.
            num_inference_steps: 1 to the scheduler's number of training timesteps; None = the model's default.
            timesteps, sigmas: the steps to take, in place of `num_inference_steps`: falling, one of the two. For a flow
                every scheduler takes them, timesteps 0 to 999 and sigmas 0 to 1.
            guidance_scale: 0 or more, 1 = off; None = the model's default. Or a `Guidance`, the complete rule; then
                interval, rescale, cfg_zero and zero_init are its own.
            negative_prompt: what the images should not show, one for all or one per prompt; None = the null caption.
                Only used when guidance is on.
            num_images_per_prompt: the images of a prompt lie side by side in the result.
            eta: 0 to 1, fraction of new noise in each step of DDIM (and TCD); other schedulers ignore it.
            generator: source of the noise, one for all or one per image, as in diffusers.
            latents: initial noise of unit variance, (B, c, h, w), in place of generator and seed.
            prompt_embeds, negative_prompt_embeds: in place of the texts, (number of prompts, L, D) as `encode_prompt`
                gives them.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False = the tuple (images, None); None is where diffusers says what a safety checker found.
            cross_attention_kwargs: {"scale": factor} of adapters that `load_lora_weights` loaded; no other key.
            guidance_interval, guidance_rescale, cfg_zero, zero_init: see `Guidance`; None = the model's
                default, which is (0, 1) and 0 unless it has others.
            clip_skip: number of the text encoder's last layers to leave out for the prompt, not for the negative one.
            callback_on_step_end: called after every step with (pipeline, step, timestep, dict of tensors); the dict it
                returns replaces the tensors. `pipeline._guidance_scale` may be set and `pipeline._interrupt = True`
                ends the loop. With guidance the negative prompts' rows come first in prompt_embeds; without them it
                turns guidance off.
            callback_on_step_end_tensor_inputs: which of latents, prompt_embeds and negative_prompt_embeds it gets.
            seed: image i is generated from seed + i, whatever else is generated with it. Not together with generator.
            callback: called after every step with (step, timestep, latents of all images).
            batch_size: how many images go through the networks at once; changes memory, not results.
            weak: a worse model of the same latents to guide away from (autoguidance, see `ldm.pipelines.autoguidance`):
                a pipeline, a denoiser with this one's text encoder, or a path or Hub id. It is conditioned on the
                prompt too, or on the negative prompt where there is one.
            sampler: a name in `SAMPLERS` that a scheduler of diffusers takes the steps of; None = the model's.

        Raises: ValueError naming the argument, what it was and what is allowed; UserError for a sampler without one.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "return_dict")}
        output = self.run(self.plan(**given))
        return output if return_dict else (output.images, None)

    @torch.no_grad()
    def plan(self, prompt: str | Sequence[str] | None = None, **options: Any) -> SamplingPlan:
        """What `__call__` does with these arguments, which are its own; `run` does it. For changes in between."""
        bound = inspect.signature(Pipeline.__call__).bind(self, prompt, **options)  # a subclass may have another
        bound.apply_defaults()
        a = SimpleNamespace(**bound.arguments)
        if isinstance(a.height, str | list):  # the second argument was the negative prompt before version 0.3
            a.height, a.negative_prompt = None, a.height
        latent_shape = self.latent_shape_of(a.height, a.width)
        scheduler = self.scheduler if a.sampler is None else with_sampler(self.scheduler, a.sampler)
        check_scheduler(scheduler, self._own_scheduler)
        steps = check_steps(scheduler, self._default("num_inference_steps", a.num_inference_steps))
        rule = self._rule(a.guidance_scale, a.guidance_interval, a.guidance_rescale, a.cfg_zero, a.zero_init)
        if a.output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {a.output_type!r}")
        texts = (a.prompt, a.negative_prompt, a.prompt_embeds, a.negative_prompt_embeds)
        if all(each is None for each in (*texts, a.weak)):
            rule = replace(rule, scale=1.0)
        lora_scale = lora_scale_of(a.cross_attention_kwargs)
        with self.adapters.scaled(lora_scale):
            embeds, negative, predict = self._conditions(a, rule.scale != 1)
        noise, generators = initial_noise((len(embeds), *latent_shape), a.latents, a.generator, a.seed)
        return SamplingPlan(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            noise=noise.to(self.device, self.dtype),
            scheduler=scheduler,
            num_inference_steps=steps,
            timesteps=a.timesteps,
            sigmas=a.sigmas,
            eta=check_fraction("eta", a.eta),
            lora_scale=lora_scale,
            generators=generators,
            num_prompts=len(embeds) // int(a.num_images_per_prompt),
            guidance=rule,
            weak=predict,
            callback=a.callback,
            callback_on_step_end=a.callback_on_step_end,
            tensor_inputs=check_tensor_inputs(a.callback_on_step_end, a.callback_on_step_end_tensor_inputs),
            batch_size=check_count("batch_size", a.batch_size),
            output_type=a.output_type,
        )

    def _conditions(self, a: SimpleNamespace, guided: bool) -> tuple[Tensor, Tensor | None, Callable | None]:
        """Embeddings of the prompts and, if guided, of the negative ones, a row for each image; the weak network."""
        each = check_count("num_images_per_prompt", a.num_images_per_prompt)
        check_embeds(self.networks.config("text_encoder"), a)
        prompts = check_texts("prompt", a.prompt)
        embeds, negative = a.prompt_embeds, a.negative_prompt_embeds
        embeds = self.encode_prompt(prompts, a.clip_skip) if embeds is None else embeds
        negatives = negatives_of(a.negative_prompt, len(embeds))
        predict, encode = (None, self.encode_prompt) if a.weak is None or not guided else self._weak(a.weak)
        if not guided:
            negative = None
        elif negative is None and predict is None:
            negative = encode(negatives, length=embeds.shape[1])
        elif negative is None:
            if a.prompt_embeds is not None and a.negative_prompt is None:
                raise ValueError("weak reads the prompt itself: give prompt, or negative_prompt_embeds for weak")
            negative = encode(prompts if a.negative_prompt is None else negatives)
        if negative is not None and predict is None and negative.shape != embeds.shape:
            shapes = f"{tuple(negative.shape)} and {tuple(embeds.shape)}"
            raise ValueError(f"negative_prompt_embeds must have the shape of the prompts' embeddings, got {shapes}")
        embeds = embeds.repeat_interleave(each, dim=0).to(self.device, self.dtype)
        negative = None if negative is None else negative.repeat_interleave(each, dim=0).to(self.device, self.dtype)
        return embeds, negative, predict

    @torch.no_grad()
    def run(self, plan: SamplingPlan) -> PipelineOutput:
        """The images of a plan; with `plan.inverse` the noise of its latents, whatever the output type.

        Every step is taken by all images together, so that noise drawn within it is theirs in the same order whatever
        the batch size; only the networks get them in batches.
        """
        session = Session(self, plan, self._predict_in_batches)
        try:
            with self.adapters.scaled(plan.lora_scale):
                latents = (invert if plan.inverse else denoise)(plan, session.predict, session)
            if plan.inverse or plan.output_type == "latent":
                return PipelineOutput(latents)
            images = torch.cat([self.decode(part) for part in latents.split(plan.batch_size)])
            return PipelineOutput(as_output(images, plan.output_type))
        finally:
            session.end()
            self.maybe_free_model_hooks()

    def _predict_in_batches(self, plan: SamplingPlan) -> Callable[[Tensor, Tensor], Tensor]:
        batches = [self._guided(part) for part in plan.batches()]

        def predict(x_t: Tensor, timestep: Tensor) -> Tensor:
            parts = zip(batches, x_t.split(plan.batch_size), strict=True)
            return torch.cat([guided(part, timestep) for guided, part in parts])

        return predict

    def denoiser(
        self,
        prompts: str | Sequence[str] | Tensor,
        guidance: Guidance | float = 1.0,
        negative: str | Sequence[str] = "",
        process: NoiseProcess | None = None,
    ) -> Callable:
        """The model as `ldm.diffusion.samplers` takes it: (x_t (B, c, h, w), t) -> x0_hat in x_t's dtype.

        It runs in torch, so gradients flow.

        Args:
            prompts: one for all rows or one per row, or their embeddings (1 or B, L, D). negative: as these.
            guidance: the rule, or its scale; 1 = off.
            process: that the model was trained with; None = its scheduler's.
        """
        process = process or process_of(self.scheduler)
        return denoise_with(process, self.predictor(prompts, guidance, negative, process))

    def predictor(
        self,
        prompts: str | Sequence[str] | Tensor,
        guidance: Guidance | float = 1.0,
        negative: str | Sequence[str] = "",
        process: NoiseProcess | None = None,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """As `denoiser`, but (network input (B, c, h, w), timestep) -> the network's prediction, in its dtype."""
        process = process or process_of(self.scheduler)
        rule = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        cond = prompts if isinstance(prompts, Tensor) else self.encode_prompt(prompts)
        uncond = None if rule.scale == 1 else self.encode_prompt(negative)

        def predict(x: Tensor, timestep: Tensor) -> Tensor:
            each = cond.expand(len(x), -1, -1)
            null = None if uncond is None else uncond.expand(len(x), -1, -1)
            time = process.schedule.from_timestep
            guided = guide(self.networks.predict_in_torch, each, null, rule, process=process, time=time)
            return guided(x.to(self.device, self.dtype), timestep).to(x)

        return predict

    # ---- between texts, images and latents --------------------------------------------------------------------------

    def encode_prompt(
        self, prompts: str | Sequence[str], clip_skip: int | None = None, length: int | None = None
    ) -> Tensor:
        """Embeddings (B, L, D) of the prompts; equal prompts go through the encoder once.

        Args: clip_skip: see `__call__`; length: of the padded prompts, L, None = the tokenizer's.
        Raises: ValueError.
        """
        prompts = check_texts("prompt", prompts)
        if clip_skip is not None:
            clip_skip = check_count("clip_skip", clip_skip, 0, self.networks.config("text_encoder").num_hidden_layers)
        unique = list(dict.fromkeys(prompts))
        texts = [with_all_vectors(prompt, self.tokenizer) for prompt in unique]
        length = self.tokenizer.model_max_length if length is None else length
        for prompt, ids in zip(unique, self.tokenizer(texts, verbose=False).input_ids, strict=True):
            if len(ids) > length:  # said here, with the words
                lost = self.tokenizer.decode(ids[length - 1 : -1]).strip()
                log.warning(CUT, length, lost, prompt)
        ids = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        embeds = self.networks.encode_text(ids.input_ids, clip_skip=clip_skip).to(self.dtype)
        return embeds[[unique.index(prompt) for prompt in prompts]]

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1], float32, of model latents (B, c, h, w); alpha is straight."""
        latents = from_model_latents(latents.to(self.networks.dtype("vae")), self.networks.config("vae"))
        return (self.networks.decode(latents) / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Model latents (B, c, h, w) of images (B, C, H, W) in [0, 1]: the posterior's mean, what `decode` undoes."""
        vae: Any = self.networks.module("vae")
        latents = posterior(vae, (images * 2 - 1).to(self.device, vae.dtype)).mode()
        return to_model_latents(latents, vae.config).to(self.dtype)

    def preview(self, latents: Tensor) -> Tensor:
        """As `decode`, but quick and rough, by the tiny decoder of `ldm preview-decoder` where the run has one."""
        if self._tiny is None:
            return self.decode(latents)
        return (self._tiny.decode(latents.to(self._tiny.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    @cached_property
    def _tiny(self) -> Any:
        """The AutoencoderTiny beside the final/ folder of the run that this came from, or None."""
        final = self.folder.paths["vae"].parent if self.folder else Path()
        if final.name != "final" or not (final.parent / "preview" / "config.json").is_file():
            return None
        tiny = stock_class("preview", "AutoencoderTiny").from_pretrained(final.parent / "preview", use_safetensors=True)
        return tiny.to(self.device, self.dtype).eval()

    # ---- guidance ---------------------------------------------------------------------------------------------------

    def _default(self, name: str, value: Any) -> Any:
        return self.defaults[name] if value is None else value

    def _rule(self, scale: Any, interval: Any, rescale: Any, cfg_zero: bool, zero_init: float) -> Guidance:
        """The guidance asked for, with the model's own settings where nothing was."""
        if isinstance(scale, Guidance):
            if interval is not None or rescale is not None or cfg_zero or zero_init:
                raise ValueError("guidance_scale is a Guidance, which holds interval, rescale, zero_star and zero_init")
            return scale
        scale = check_scale("guidance_scale", self._default("guidance_scale", scale))
        interval = self.defaults.get("guidance_interval", (0, 1)) if interval is None else interval
        rescale = self.defaults.get("guidance_rescale", 0.0) if rescale is None else rescale
        times: Any = tuple(check_number("guidance_interval", each) for each in interval)
        rescale, zero_init = check_number("guidance_rescale", rescale), check_number("zero_init", zero_init)
        return Guidance(scale, times, rescale, bool(cfg_zero), zero_init)

    def _guided(self, plan: SamplingPlan) -> Callable[[Tensor, Tensor], Tensor]:
        """`guide` for a plan: the noise process is there only where times or velocities matter to the rule."""
        rule = plan.guidance
        needs: dict[str, Any] = {}
        if rule != Guidance(rule.scale, rescale=rule.rescale):
            process = process_of(self.scheduler)
            needs = {"process": process, "time": process.schedule.from_timestep}
        embeds = plan.prompt_embeds, plan.negative_prompt_embeds
        return guide(self.networks.predict, *embeds, rule, weights=plan.weights, weak=plan.weak, **needs)

    def _weak(self, weak: "Pipeline | nn.Module | str | Path") -> tuple[Callable, Callable]:
        """The weak model's `predict` and `encode_prompt`. Raises: ValueError for other latents or another process."""
        if isinstance(weak, nn.Module):
            _check_latents(latent_shape(weak.config), self.latent_shape)
            return partial(run_unet, weak.eval()), self.encode_prompt
        if isinstance(weak, str | Path):
            if self.load_weak is None:
                raise ValueError(f"weak must be a pipeline or a network where `load_pipeline` made none, got {weak!r}")
            weak = self.load_weak(weak, self)
        _check_latents(weak.latent_shape, self.latent_shape)
        check_same_process(self.scheduler, weak.scheduler)
        return weak.networks.predict, weak.encode_prompt


def _check_latents(weak: tuple[int, ...], main: tuple[int, ...]) -> None:
    if weak != main:
        raise ValueError(f"the weak model has latents {weak}, the main one {main}: no match")


def as_output(images: Tensor, output_type: str) -> Any:
    """Images (B, C, H, W) in [0, 1] as the caller wants them; one channel becomes mode "L", 4 become mode "RGBA"."""
    if output_type in ("latent", "pt"):
        return images
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return pixels
    return [to_pil(each) for each in (pixels * 255).round().astype(np.uint8)]


def to_pil(pixels: np.ndarray) -> Image.Image:
    """uint8 (H, W, C) as an image in mode "L", "RGB" or, with straight alpha, "RGBA"."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
