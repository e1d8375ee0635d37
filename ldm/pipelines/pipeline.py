"""Prompt to pictures, over the folder that stock `StableDiffusionPipeline` reads, with the same arithmetic.

Text is padded to the tokenizer's length and used without an attention mask; the null caption is "". Model latents have
about unit variance; `vae.config.scaling_factor` is honoured. Any scheduler of `stock.CLASSES` can be put in place.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.diffusion.guidance import Guidance, guide
from ldm.models.latents import from_model_latents, posterior, to_model_latents
from ldm.models.lora import digest_with
from ldm.pipelines.component_classes import stock_class
from ldm.pipelines.denoising_loop import Callback, Denoise, Walk
from ldm.pipelines.diffusers_schedulers import check_same_process, process_of, with_sampler
from ldm.pipelines.model_folder import COMPONENTS, FALLBACKS, ModelFolder
from ldm.pipelines.onnx_runtime import GRAPHS, Engine
from ldm.pipelines.torch_free import CUT

log = logging.getLogger(__name__)
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class PipelineOutput:
    images: Any  # list of PIL images, numpy (B, H, W, C) or torch (B, C, H, W) in [0, 1], or latents (B, c, h, w)


class Pipeline:
    """The five components of a latent diffusion model, and how they draw.

    Attributes: vae, text_encoder, tokenizer, unet, scheduler (stock objects, replaceable), defaults (a dict with
    num_inference_steps and guidance_scale), folder (where it came from, or None), engine (what computes in place of
    the networks, for as long as nobody changes them, or None), lora (the adapters in the weights and how strongly, or
    None), load_weak (path -> the weak model there, or None).
    """

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        unet,
        scheduler,
        defaults=None,
        folder: ModelFolder | None = None,
        engine: Engine | None = None,
    ):
        self.vae, self.text_encoder, self.tokenizer = vae, text_encoder, tokenizer
        self.unet, self.scheduler, self.folder = unet, scheduler, folder
        self.defaults = {**FALLBACKS, **(defaults or {})}
        for model in (vae, text_encoder, unet):
            model.eval()
        self.engine = engine
        self.lora: tuple[str | Path, float] | None = None
        self.load_weak: Callable[[str | Path, Pipeline], Pipeline] | None = None
        self._untouched = {name: _fingerprint(getattr(self, name)) for name in GRAPHS} if engine else {}

    def _engine(self, component: str) -> Engine | None:
        """The engine, if the component is as it was when the engine came; else None, from then on."""
        if self.engine is not None and _fingerprint(getattr(self, component)) != self._untouched[component]:
            log.info("%s was changed, so its networks run in torch from now on", component)
            self.engine = None
        return self.engine

    @property
    def components(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COMPONENTS}

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image's latents."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @cached_property
    def digest(self) -> str:
        """The model folder's digest, with that of the adapters; "" for a pipeline put together from objects."""
        digest = self.folder.digest() if self.folder else ""
        return digest_with(digest, *self.lora) if self.lora else digest

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "Pipeline":
        """Move and cast the three networks in place; returns itself."""
        wanted = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
        for model in (self.vae, self.text_encoder, self.unet):
            model.to(**wanted)
        return self

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback: Callback | None = None,
        batch_size: int = 64,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        cfg_zero: bool = False,
        zero_init: float = 0.0,
        weak: "Pipeline | torch.nn.Module | str | Path | None" = None,
        sampler: str | None = None,
        change: Callable[[Walk], Walk] | None = None,
    ) -> PipelineOutput:
        """Draw pictures.

        Args:
            prompt: one or several; None or "" alone is the trained null caption. None also turns guidance off (unless
                a negative prompt is given).
            negative_prompt: what to lead away from, one for all or one per prompt; None = the null caption.
                Only used when guidance is on.
            num_inference_steps: 1 to the scheduler's number of training timesteps; None = the model's default.
            guidance_scale: 0 or more, 1 = off; None = the model's default.
            num_images_per_prompt: pictures of one prompt lie side by side in the result.
            generator: source of the noise, one for all or one per picture, as in diffusers.
            seed: picture i is drawn from seed + i, whatever else is drawn with it. Not together with generator.
            latents: starting noise of unit variance, (B, c, h, w), in place of generator and seed.
            output_type: "pil", "np", "pt" or "latent".
            callback: called after every step of every sub-batch with (step, timestep, latents).
            batch_size: how many pictures go through the networks at once; changes memory, not results.
            guidance_interval, guidance_rescale, cfg_zero, zero_init: see `Guidance`; None = the model's
                default, which is (0, 1) and 0 unless it has others.
            weak: a worse model of the same latents to lead away from (autoguidance, see `ldm.pipelines.autoguidance`):
                a pipeline, a denoiser with this one's text encoder, or a path or Hub id. It is told the prompt too,
                or the negative prompt where there is one.
            sampler: a name in `SAMPLERS` that a stock scheduler takes the steps of; None = the model's.
            change: what is done to the text states, the noise and the way from it before it is taken; see `editing`.

        Raises: ValueError naming the argument, what it was and what is allowed; UserError for a sampler without one.
        """
        steps = self._default("num_inference_steps", num_inference_steps)
        rule = self._rule(guidance_scale, guidance_interval, guidance_rescale, cfg_zero, zero_init)
        if prompt is None and negative_prompt is None and weak is None:
            rule = replace(rule, scale=1.0)
        prompts, negatives = _prompts(prompt, negative_prompt, num_images_per_prompt)
        _check_count("batch_size", batch_size)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")
        noise, generators = self._noise(len(prompts), latents, generator, seed)
        worse = None if weak is None or rule.scale == 1 else self._weak(weak)
        away = prompts if worse is not None and negative_prompt is None else negatives
        negative = None if rule.scale == 1 else (worse or self).encode_prompt(away)
        whole = Walk(self.encode_prompt(prompts), negative, noise.to(self.device, self.dtype), generators)
        whole = whole if change is None else change(whole)
        scheduler = self.scheduler if sampler is None else with_sampler(self.scheduler, sampler)
        guided = self._guided(rule, worse)
        results = []
        for start in range(0, len(prompts), batch_size):
            walk = whole.part(slice(start, start + batch_size))
            denoise = guided(walk.condition, walk.negative, weights=walk.weights)
            z0 = walk.take(walk, scheduler, denoise, steps, callback)
            results.append(z0 if output_type == "latent" else self.decode(z0))
        return PipelineOutput(as_output(torch.cat(results), output_type))

    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        """Text states (B, L, D) of the prompts; equal prompts go through the encoder once."""
        unique = list(dict.fromkeys(prompts))
        length = self.tokenizer.model_max_length
        whole = self.tokenizer(unique, verbose=False).input_ids  # we tell of the cut ourselves, with its words
        for prompt, ids in zip(unique, whole, strict=True):
            if len(ids) > length:
                lost = self.tokenizer.decode(ids[length - 1 : -1]).strip()
                log.warning(CUT, length, lost, prompt)
        ids = self.tokenizer(unique, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        if engine := self._engine("text_encoder"):
            states = torch.from_numpy(engine.states(ids.input_ids.numpy()))
        else:
            states = self.text_encoder(ids.input_ids.to(self.device))[0].to(self.dtype)
        return states[[unique.index(prompt) for prompt in prompts]]

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1], float32, of model latents (B, c, h, w)."""
        latents = from_model_latents(latents.to(self.vae.dtype), self.vae.config)
        engine = None if latents.requires_grad else self._engine("vae")  # only torch has gradients
        if engine:
            pictures = torch.from_numpy(engine.decode(latents.numpy()))
        else:
            pictures = self.vae.decode(latents, return_dict=False)[0].float()
        return (pictures / 2 + 0.5).clamp(0, 1)

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> Tensor:
        """Model latents (B, c, h, w) of pictures (B, C, H, W) in [0, 1]: the posterior's mean, what `decode` undoes."""
        latents = posterior(self.vae, (pictures * 2 - 1).to(self.device, self.vae.dtype)).mode()
        return to_model_latents(latents, self.vae.config).to(self.dtype)

    def preview(self, latents: Tensor) -> Tensor:
        """As `decode`, but quick and rough, by the tiny decoder of `ldm preview-decoder` where the run has one."""
        if self._tiny is None:
            return self.decode(latents)
        return (self._tiny.decode(latents.to(self._tiny.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    @cached_property
    def _tiny(self):
        """The AutoencoderTiny beside the final/ folder of the run that this came from, or None."""
        final = self.folder.paths["vae"].parent if self.folder else Path()
        if final.name != "final" or not (final.parent / "preview" / "config.json").is_file():
            return None
        tiny = stock_class("preview", "AutoencoderTiny").from_pretrained(final.parent / "preview", use_safetensors=True)
        return tiny.to(self.device, self.dtype).eval()

    def _predict(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return self.unet(x_t, t, encoder_hidden_states=condition, return_dict=False)[0]

    def _rule(self, scale, interval, rescale, cfg_zero: bool, zero_init: float) -> Guidance:
        """The guidance asked for, with the model's own settings where nothing was."""
        scale = float(self._default("guidance_scale", scale))
        interval = self.defaults.get("guidance_interval", (0, 1)) if interval is None else interval
        rescale = self.defaults.get("guidance_rescale", 0.0) if rescale is None else rescale
        return Guidance(scale, tuple(interval), rescale, cfg_zero, zero_init)

    def _weak(self, weak: "Pipeline | torch.nn.Module | str | Path") -> "Pipeline":
        """The weak model as a pipeline of its own. Raises: ValueError if its latents or noise process are others."""
        if isinstance(weak, str | Path):
            if self.load_weak is None:
                raise ValueError(f"weak must be a Pipeline or a network where `load_pipeline` made none, got {weak!r}")
            weak = self.load_weak(weak, self)
        elif isinstance(weak, torch.nn.Module):
            network, weak = weak, copy.copy(self)
            weak.unet = network.eval()
        if weak.latent_shape != self.latent_shape:
            raise ValueError(f"the weak model has latents {weak.latent_shape}, the main one {self.latent_shape}")
        check_same_process(self.scheduler, weak.scheduler)
        return weak

    def _guided(self, rule: Guidance, weak: "Pipeline | None") -> Callable[..., Denoise]:
        """`guide` without the states: the noise process is there only where times or velocities matter to the rule."""
        engine = self._engine("unet")
        predict = self._predict if engine is None else partial(_predict_with, engine)
        needs: dict[str, Any] = {"weak": weak._predict} if weak else {}
        if rule != Guidance(rule.scale, rescale=rule.rescale):
            process = process_of(self.scheduler)
            needs |= {"process": process, "time": process.schedule.from_timestep}
        return partial(guide, predict, guidance=rule, **needs)

    def _default(self, name: str, value):
        """`value`, or the model's own setting when it is None; checked."""
        value = self.defaults[name] if value is None else value
        if name == "num_inference_steps":
            _check_count(name, value, self.scheduler.config.num_train_timesteps)
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a finite number, 0 or more (1 = off), got {value!r}")
        return value

    def _noise(self, total: int, latents, generator, seed) -> tuple[Tensor, Any]:
        """Starting noise (total, c, h, w) in float32, and what a stochastic scheduler draws from."""
        shape = (total, *self.latent_shape)
        if seed is not None:
            if generator is not None or latents is not None:
                raise ValueError("seed must be None when generator or latents is given: they decide the noise")
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63 - total:
                raise ValueError(f"seed must be a whole number from 0 to 2**63, got {seed!r}")
            generator = [torch.Generator().manual_seed(seed + i) for i in range(total)]
        given = generator if isinstance(generator, list) else [generator]
        if generator is not None and not all(isinstance(each, torch.Generator) for each in given):
            raise ValueError(f"generator must be a torch.Generator or a list of them, got {generator!r}")
        if isinstance(generator, list) and len(generator) != total:
            raise ValueError(f"generator must be one, or a list of {total} (one per picture), got {len(generator)}")
        if latents is not None:
            if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
                got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
                raise ValueError(f"latents must be a tensor of shape {shape}, got {got}")
            return latents, generator
        return _draw(shape, generator), generator


def _draw(shape: tuple[int, ...], generator) -> Tensor:
    """Standard normal noise, always float32, so that a seed means the same at every precision."""
    if isinstance(generator, list):
        return torch.cat([_draw((1, *shape[1:]), each).cpu() for each in generator])
    return torch.randn(shape, generator=generator, device=generator.device if generator is not None else "cpu")


def _prompts(prompt, negative, each: int) -> tuple[list[str], list[str]]:
    """Both as lists of one text per picture. Raises: ValueError for anything but text and a count."""
    _check_count("num_images_per_prompt", each)
    prompts = _texts("prompt", prompt)
    negatives = _texts("negative_prompt", negative)
    if isinstance(negative, str) or negative is None:
        negatives = negatives * len(prompts)
    if len(negatives) != len(prompts):
        raise ValueError(f"negative_prompt must be one, or as many as prompts ({len(prompts)}), got {len(negatives)}")
    return [text for text in prompts for _ in range(each)], [text for text in negatives for _ in range(each)]


def _texts(name: str, value) -> list[str]:
    texts = [""] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a text, a list of texts, or None, got {value!r}")
    return list(texts)


def _check_count(name: str, value, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        allowed = "1 or more" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name} must be a whole number, {allowed}, got {value!r}")


def _predict_with(engine: Engine, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """As `Pipeline._predict`."""
    times = t.expand(len(x_t)).float()
    return torch.from_numpy(engine.predict(x_t.numpy(), times.numpy(), condition.numpy()))


def _fingerprint(network: torch.nn.Module) -> list[tuple]:
    """Changes with any weight, layer, adapter, attention processor, hook or device: what an engine would not notice."""
    modules = (
        (id(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), id(getattr(m, "processor", None)))
        for m in network.modules()
    )
    weights = ((p.data_ptr(), 0 if p.is_inference() else p._version) for p in network.parameters())
    return [*modules, *weights]


def as_output(images: Tensor, output_type: str):
    """Pictures (B, C, H, W) in [0, 1] as the caller wants them; grey ones become mode "L"."""
    if output_type in ("latent", "pt"):
        return images
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return pixels
    pixels = (pixels * 255).round().astype(np.uint8)
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in pixels]
