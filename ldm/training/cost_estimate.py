"""What a run will cost, before it starts: the report of `--dry-run`, and the numbers behind `ldm plan`.

Parameters, FLOPs and saved activations are counted by running one forward and backward pass of the real model on
torch's meta device, where nothing is computed. Speed is measured: the same model takes real steps for two seconds
on the device at hand, because peak FLOP/s say little about small convolutions, and then a step of the optimizer.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig

from ldm.config.loading import load, run_dir
from ldm.config.settings import ClipSettings, DataOptions, LdmSettings, RunSettings, VaeSettings
from ldm.data import build as build_data
from ldm.data import is_own
from ldm.formats.shards import is_pattern
from ldm.models.pretrained import TEXT, VAE, Component, locate
from ldm.training.devices import training_device
from ldm.training.distributed import checkpoint_gradients, precision
from ldm.training.optimizer import Muon, build_optimizer
from ldm.training.run_directory import sibling
from ldm.utils.errors import UserError
from ldm.utils.image_sizes import resolution_of, size_of
from ldm.utils.runtime import launched_processes
from ldm.utils.terminal import duration_text

TEXT_SIZES = ("max_position_embeddings", "hidden_size")  # of a config, which leaves out what is usual
PROBE_SECONDS = 2.0
PROBE_BATCH = 4  # to begin with: one image alone is bound by overheads
# Measured on a CPU with U-Nets, autoencoders and CLIP, peak less start less weights: 1.2 to 1.6 times what autograd
# saves, and under autocast 0.5 to 0.85 of that, for norms stay in fp32.
BACKWARD_FACTOR, HALF_FACTOR = 1.4, 0.7


@dataclass(frozen=True)
class ProbeTarget:
    """What is trained, and one of its steps on any device."""

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, int, torch.device], Tensor]  # (module, batch size, device) -> scalar
    description: str  # of its input
    kept: Callable[[nn.Module], nn.Module] = lambda module: module  # the part of it that is exported
    channels_last: bool = False  # whether half precision takes that layout


@dataclass(frozen=True)
class CostCount:
    exported: int  # parameters that are kept
    trained: int  # parameters with gradients, helpers such as a discriminator included
    flops: int  # of one image, forward and backward
    activations: int  # bytes kept for the backward pass of one image, fp32
    operations: int = 0  # of a forward and backward pass, whatever the batch; each is launched


@dataclass(frozen=True)
class Speed:
    images: float  # forward and backward a second, of one process
    update: float  # seconds that the optimizer and the EMA take in a step
    remark: str = ""  # where other programs took most of the CPU meanwhile


@dataclass(frozen=True)
class Forecast:
    """What training one part will cost, without data, samples and validation."""

    cost: CostCount
    speed: Speed
    world: int  # processes
    local: int  # images that one of them holds at once
    state: int  # bytes of weights, gradients, Adam's moments and EMA
    description: str  # of the input
    device: torch.device
    half: torch.dtype | None

    @property
    def activation_bytes(self) -> float:
        """Bytes of activations, and of their gradients on the way back."""
        return self.cost.activations * self.local * BACKWARD_FACTOR * (HALF_FACTOR if self.half else 1)

    @property
    def memory(self) -> float:
        """Bytes beside what the program takes by itself."""
        return self.state + self.activation_bytes

    def step_seconds(self, batch_size: int) -> float:
        """Of one step of the whole global batch."""
        return batch_size / (self.speed.images * self.world) + self.speed.update


def plan(part: str, settings: RunSettings, config: Path | None = None) -> str:
    """The report of `--dry-run`, several lines.

    Args:
        part: "clip", "vae" or "ldm".
        settings: of that part.
        config: the project file; an LDM plan looks there for the shapes of a VAE and a text encoder not yet trained.
    """
    found, train = forecast(part, settings, config), settings.train
    cost, images = found.cost, train.num_steps * train.batch_size
    seconds = found.step_seconds(train.batch_size)
    speed = train.batch_size / seconds
    rows = {
        "model": f"{_parameters(cost.exported)}; {found.description}",
        "memory": f"about {size_text(found.memory)}: {size_text(found.state)} for weights, gradients, Adam and EMA, "
        f"{size_text(found.activation_bytes)} for the activations of {found.local} images",
        "compute": f"{_si(cost.flops)}FLOP an image, {_si(cost.flops * train.batch_size)}FLOP a step",
        "amount": f"{train.num_steps:,} steps x {train.batch_size} = {images:,} images{_epochs(settings, images)}",
        "speed": f"{speed:.3g} images/s measured on {_name(found.device, found.half)}, {_si(speed * cost.flops)}FLOP/s"
        f"{found.speed.remark}",
        "time": f"about {duration_text(train.num_steps * seconds)}, without data, samples and validation",
        "folder": str(run_dir(settings, part)),
    }
    return "\n".join(f"{name:<9}{text}" for name, text in rows.items())


def forecast(
    part: str,
    settings: RunSettings,
    config: Path | None = None,
    timed: bool = True,
    cost: CostCount | None = None,
) -> Forecast:
    """Count, and measure unless `timed` is false: some seconds on the device that would train.

    `cost`: what was counted for this model before; other arguments as of `plan`.
    """
    subject = probe_target(part, settings, config)
    device = training_device()
    half = _half_precision(settings, device)
    cost = cost or measure_cost(subject)
    world = launched_processes()
    train = settings.train
    local = max(1, train.batch_size // (world * train.gradient_accumulation_steps))
    speed = probe(subject, device, local, half, settings) if timed else Speed(math.nan, math.nan)
    state = 16 * cost.trained + (4 * cost.exported if train.ema_decay else 0)  # weights, gradients, Adam's two; EMA
    return Forecast(cost, speed, world, local, state, subject.description, device, half)


def probe_target(part: str, settings: RunSettings, config: Path | None) -> ProbeTarget:
    """What one stage trains; arguments as of `plan`."""
    subject = SUBJECTS[part](settings, config)
    if not settings.train.gradient_checkpointing:
        return subject
    build = subject.build
    return replace(subject, build=lambda: checkpoint_gradients(build()))


def measure_cost(subject: ProbeTarget) -> CostCount:
    """Parameters, FLOPs and activation bytes of one image, counted without computing anything."""
    meta = torch.device("meta")
    with meta:
        model = subject.build().train()
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    batch, kept = 2, {}  # two, because contrastive learning needs a negative

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()  # views of one storage count once
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    with FlopCounterMode(display=False) as counter, _Operations() as operations, hooks:
        loss = subject.loss(model, batch, meta)
        loss.backward()
    exported = sum(p.numel() for p in subject.kept(model).parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flops, activations = counter.get_total_flops() // batch, sum(kept.values()) // batch
    return CostCount(exported, trained, flops, activations, operations.count)


class _Operations(TorchDispatchMode):
    """Counts the operations within it that compute something: views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def probe(
    subject: ProbeTarget,
    device: torch.device,
    largest: int,
    half: torch.dtype | None,
    settings: RunSettings | None = None,
) -> Speed:
    """Real forward and backward passes for two seconds, the batch doubling up to `largest` while they are short.

    With `settings`, then two steps of their optimizer, of which the second counts.
    """
    with torch.random.fork_rng():
        model = subject.build().to(device).train()
        if half and (subject.channels_last or device.type == "cuda"):  # as the trainer does
            model.to(memory_format=torch.channels_last)
        batch, speed = min(PROBE_BATCH, largest), 0.0
        started, used = time.perf_counter(), time.process_time()
        while True:
            try:
                seconds = timed_step(subject, model, batch, device, half)  # warm-up: buffers, kernels
                if seconds < PROBE_SECONDS:  # else it is all that there is time for
                    seconds = min(timed_step(subject, model, batch, device, half) for _ in range(2))
            except torch.OutOfMemoryError:
                if speed:
                    break
                raise UserError(f"{batch} images do not fit into the memory of {device}: use a smaller model") from None
            speed = max(speed, batch / seconds)
            elapsed = time.perf_counter() - started
            if batch >= largest or elapsed + 6 * seconds > PROBE_SECONDS:
                break
            batch = min(2 * batch, largest)
        fraction = (time.process_time() - used) / (time.perf_counter() - started) / torch.get_num_threads()
        update = _update_seconds(model, subject.kept(model), settings) if settings else 0.0
    busy = device.type == "cpu" and fraction < 0.6
    return Speed(speed, update, f" while other programs left it {fraction:.0%} of them" if busy else "")


def timed_step(
    subject: ProbeTarget, model: nn.Module, batch: int, device: torch.device, half: torch.dtype | None
) -> float:
    started = time.perf_counter()
    with torch.autocast(device.type, half) if half else nullcontext():
        loss = subject.loss(model, batch, device)
    loss.backward()
    model.zero_grad()
    _wait(device)
    return time.perf_counter() - started


def _update_seconds(model: nn.Module, kept: nn.Module, settings: RunSettings) -> float:
    """What one step of clipping, the optimizer and the EMA takes."""
    optimizer = build_optimizer(model, settings.optim)
    ema = EMAModel(kept.parameters(), foreach=True) if settings.train.ema_decay else None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    others = set()  # whose part of Muon's work is that of other processes
    if isinstance(optimizer, Muon) and trained[0].device.type == "cpu":
        others = {one for share in optimizer.shares(launched_processes())[1:] for one in share}
    seconds = 0.0
    for _ in range(2):
        for parameter in trained:
            parameter.grad = None if parameter in others else torch.full_like(parameter, 1e-6)
        _wait(trained[0].device)
        started = time.perf_counter()
        nn.utils.clip_grad_norm_(trained, settings.optim.grad_clip)
        optimizer.step()
        if ema:
            ema.step(kept.parameters())
        _wait(trained[0].device)
        seconds = time.perf_counter() - started
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


# ---- the three stages -----------------------------------------------------------------------------------------------


def _clip(settings: ClipSettings, config: Path | None) -> ProbeTarget:
    from ldm.models.clip import ClipObjective, build_clip
    from ldm.models.tokenizer import Vocabulary

    model, data, wrong = settings.model, settings.data, settings.loss.hard_negatives
    vocabulary = Vocabulary(model.vocab_size)  # no tokenizer is trained for a plan

    def loss(objective: nn.Module, batch: int, device: torch.device) -> Tensor:
        ids = torch.full((batch, model.context_length), vocabulary.eos_token_id, device=device)
        pixels = torch.zeros(batch, data.channels, *data.size, device=device)
        return objective(pixels, ids, 1.0, ids.repeat(wrong, 1) if wrong else None)[0]

    shape = f"images {data.channels} x {data.size[0]} x {data.size[1]}, captions of {model.context_length} tokens"
    shape += f", {wrong} wrong ones of each" if wrong else ""

    def build() -> nn.Module:
        clip = build_clip(model, data.resolution, data.channels, vocabulary, data.sizes)
        if training_device().type == "cpu":  # as `ldm.training.tasks.clip.ClipTask` does
            clip.set_attn_implementation("eager")
        return ClipObjective(clip)

    return ProbeTarget(build, loss, shape, lambda objective: objective.clip)


def _vae(settings: VaeSettings, config: Path | None) -> ProbeTarget:
    from ldm.models.autoencoder import build_vae, unfreeze
    from ldm.training.tasks.vae import VaeObjective, check_shapes, initial_vae

    data, initial = settings.data, None
    if settings.start.model:
        initial, settings = initial_vae(settings, data.channels)
    model = settings.model
    check_shapes(settings, data.channels, data.resolution, data.sizes)
    height, width = size_of(settings.crop or data.resolution)
    latents = (model.latent_channels, height // model.factor, width // model.factor)

    def loss(objective: nn.Module, batch: int, device: torch.device) -> Tensor:
        pixels = torch.zeros(batch, data.channels, height, width, device=device)
        noise = None if model.kind == "vq" else torch.zeros(batch, *latents, device=device)
        return objective(pixels, noise, 1.0)[0]

    shape = f"{data.channels} x {height} x {width} pixels to {' x '.join(map(str, latents))}"
    if model.kind == "vq":
        shape += f", of {model.codebook_size} codes"

    def build() -> nn.Module:
        if initial is None:
            return VaeObjective(build_vae(model, data.channels), settings.loss)
        return VaeObjective(unfreeze(type(initial).from_config(initial.config)), settings.loss)

    return ProbeTarget(build, loss, shape, lambda objective: objective.vae, True)


def _ldm(settings: LdmSettings, config: Path | None) -> ProbeTarget:
    from ldm.models.lora import add_adapters
    from ldm.models.mlp import build_mlp
    from ldm.models.unet import build_unet, choose_attention
    from ldm.training.tasks.finetuning import initial_model

    start, initial = settings.start, None
    if start.model:
        initial, settings = initial_model(settings)
    tokens, width = text_size(settings, config)
    learned = settings.noise.learned_variance
    if settings.denoiser == "mlp":
        channels, size = _point_dims(settings.data), (1, 1)
    else:
        channels, factor = latent_channels(settings, config)
        size = settings.data.size[0] // factor, settings.data.size[1] // factor

    def build() -> nn.Module:
        if settings.denoiser == "mlp":
            return build_mlp(settings.mlp, channels, width, learned)
        if initial is None:
            unet = build_unet(settings.model, channels, resolution_of(size), width, learned)
        else:
            unet = type(initial).from_config(initial.config)
        if start.lora_rank:
            add_adapters(unet, start, start.lora_targets)
        device, counted = training_device(), torch.get_default_device().type == "meta"
        wanted = "sdpa" if counted and device.type != "cpu" else settings.model.attention  # xformers computes for real
        choose_attention(unet, wanted, device, _half_precision(settings, device) is not None)
        return unet

    def loss(unet: nn.Module, batch: int, device: torch.device) -> Tensor:
        latents = torch.zeros(batch, channels, *size, device=device)
        text = torch.zeros(batch, tokens, width, device=device)
        return unet(latents, torch.zeros(batch, device=device), text).sample.float().square().mean()

    shape = f"latents {channels} x {size[0]} x {size[1]}, text {tokens} x {width}"
    return ProbeTarget(build, loss, shape)


SUBJECTS: dict[str, Callable[..., ProbeTarget]] = {"clip": _clip, "vae": _vae, "ldm": _ldm}


def latent_channels(settings: LdmSettings, config: Path | None) -> tuple[int, int]:
    """Channels and downsampling factor of the VAE: of the trained one, or else as the project file plans it."""
    if settings.vae == "identity":
        return settings.data.channels, 1
    from ldm.models.latents import downsampling_factor

    trained = _component(_run_of(settings, settings.vae, "vae", VAE), "vae")
    if trained:
        return trained["latent_channels"], downsampling_factor(trained)
    if settings.vae != "run":
        raise UserError(f"vae: {settings.vae} holds no VAE run and no AutoencoderKL; train one or set vae: run")
    planned: Any = load("vae", config) if config else VaeSettings()
    if planned.start.model:
        from ldm.training.tasks.vae import initial_vae

        planned = initial_vae(planned, settings.data.channels)[1]
    return planned.model.latent_channels, planned.model.factor


def _point_dims(options: DataOptions) -> int:
    return build_data(options).train.channels


def text_size(settings: LdmSettings, config: Path | None) -> tuple[int, int]:
    """Tokens and width of the prompt embeddings; 77 x 512, a common size, for pretrained encoders, not loaded here."""
    source = settings.text.source
    planned = load("clip", config).model if config else ClipSettings().model
    if source == "none":
        return 8, 32  # the null text encoder of `ldm.models.text_encoder`
    if source.startswith("open_clip:"):
        return 77, 512
    if source == "new":
        return ClipSettings().model.context_length, settings.text.width
    trained = _component(_run_of(settings, source, "clip", TEXT), "text_encoder")
    if trained:
        trained = trained.get("text_config") or trained  # of a whole CLIP model
        sizes = CLIPTextConfig(**{name: trained[name] for name in TEXT_SIZES if name in trained})
        return sizes.max_position_embeddings, sizes.hidden_size
    return planned.context_length, planned.width


def _run_of(settings: LdmSettings, source: str, part: str, component: Component) -> Path:
    return sibling(run_dir(settings, "ldm"), part) if source == "run" else locate(source, component, weights=False)


def _component(folder: Path, name: str) -> dict | None:
    """config.json of a component in a run's final/ folder, in a model folder, or in the folder itself."""
    for path in (folder / "final" / name, folder / name, folder):
        if (path / "config.json").is_file():
            return json.loads((path / "config.json").read_text(encoding="utf-8"))
    return None


# ---- text ---------------------------------------------------------------------------------------------------------


def _half_precision(settings: RunSettings, device: torch.device) -> torch.dtype | None:
    """What the trainer would autocast to."""
    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[
        precision(settings.train.mixed_precision, device)
    ]


def _epochs(settings: RunSettings, images: int) -> str:
    try:
        samples = training_samples(settings.data)
    except UserError as error:
        return f"; the data cannot be read yet ({error})"
    return f", {images / samples:.3g} epochs of {samples:,}"


def training_samples(options: DataOptions) -> int:
    """Number of training images, without rendering or decoding one; a font that lacks a glyph has fewer."""
    if options.source == "glyphs":
        from ldm.data.glyphs.dataset import split_characters

        glyphs = options.glyphs
        fonts = 1 if glyphs.font_file else len(set(glyphs.styles))
        return fonts * len(split_characters(glyphs.characters, glyphs.limit, glyphs.hold_out_later)["train"])
    if is_own(options.source) or is_pattern(options.source):
        return len(build_data(options).train)
    from ldm.data.image_files.dataset import divide
    from ldm.formats.sources import open_source

    return len(divide(open_source(options).samples, options.files.validation_fraction)["train"])


def _name(device: torch.device, half: torch.dtype | None) -> str:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return f"{where} ({str(half or torch.float32).removeprefix('torch.')})"


def _parameters(count: int) -> str:
    return f"{count / 1e6:.2f} M parameters, {2 * count / 2**20:.1f} MiB as fp16"


def _si(value: float) -> str:
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def size_text(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
