"""Typed, strict settings for the three trainers, and how they are read from YAML and the command line.

One YAML file describes one project: shared keys (`data`, `seed`, `train`, `optim`) at the top, and one block per
part (`clip`, `vae`, `ldm`) with what differs there. `extends: other.yaml` starts from another file.
"""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Widths = Annotated[list[Count], Field(min_length=1)]
Weight = Annotated[float, Field(ge=0)]
Place = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]  # "~/runs" is not a folder "~"
Named = Annotated[str, AfterValidator(os.path.expanduser)]  # a place, or one of a few words, or a Hub id


@dataclass(frozen=True)
class Registered:
    """A name in a registry of `ldm.diffusion`, which needs torch: it is imported to check other names than `usual`."""

    module: str
    registry: str
    usual: str

    def names(self) -> list[str]:
        return list(getattr(importlib.import_module(f"ldm.diffusion.{self.module}"), self.registry))

    def check(self, value: Any) -> str:
        if value != self.usual and value not in (names := self.names()):
            *others, last = map(repr, names)
            expected = {"expected": f"{', '.join(others)} or {last}"}
            raise PydanticCustomError("literal_error", "Input should be {expected}", expected)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": self.names(), "type": "string"}


Process = Annotated[str, Registered("schedules", "SCHEDULES", "flow")]
Prediction = Annotated[str, Registered("parameterization", "PREDICTIONS", "flow")]
TimeDensity = Annotated[str, Registered("time_sampling", "TIME_DENSITIES", "logit_normal")]
LossWeight = Annotated[str, Registered("loss_weighting", "LOSS_WEIGHTS", "uniform")]
SamplerName = Annotated[str, Registered("samplers", "SAMPLERS", "dpmpp_2m")]
GridName = Annotated[str, Registered("time_grids", "TIME_GRIDS", "uniform")]
Conditioning = Literal[  # each a function of that name in ldm/models/conditioning.py
    "cross_attention",
    "modulation",
    "concatenation",
]


class Settings(BaseModel):
    """Base of every settings class: unknown keys are errors, instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CaptionOptions(Settings):
    """Weights of the caption parts of a glyph; each caption draws its parts anew at load time."""

    layout: Fraction = 0.85  # probability that a caption names the layout ('horizontal stacked glyph')
    radical: Fraction = 0.5  # 'with the water radical'
    meaning: Fraction = 0.5  # the English definition
    style: Fraction = 0.4  # 'in sans style', 'in serif style'; never said of one's own font
    strokes: Fraction = 0.2  # '12 strokes'
    shuffle: Fraction = 0.2  # probability that the parts come in another order
    synonyms: Fraction = 0.15  # probability that the layout is said in other words
    plain: Fraction = 0.1  # probability that a caption is its layout phrase alone: what most people type
    places: Fraction = 0.5  # of naming the parts with their places: 'water on the left, horse on the right'
    typed: Fraction = 0.25  # probability that a caption is in one of the short forms that people type


class GlyphOptions(Settings):
    styles: list[Literal["hei", "song"]] = ["hei", "song"]
    font_file: Place | None = None  # one's own .ttf/.otf/.ttc instead of the packaged fonts
    characters: Literal["all", "common"] = "all"  # common = the GB2312 set, about 6,700
    limit: Annotated[int, Field(ge=0)] = 0  # keep the first N training characters (0 = all); for quick runs
    captions: CaptionOptions = CaptionOptions()
    balance: Fraction = 0.0  # a (radical, layout) of n images is drawn in proportion to n ** (1 - balance)
    recombined: Annotated[int, Field(ge=0)] = 0  # new glyphs of parts that never met, mixed in by `mixture`


class FileOptions(Settings):
    """How a folder, a parquet file or a Hub data set is read."""

    image_column: str = "image"
    caption_column: str = "text"  # a column may hold one caption or a list; "" = no captions
    resize: Literal["crop", "pad", "stretch"] = "crop"  # centre crop, pad with the background, or distort
    background: Annotated[int, Field(ge=0, le=255)] = 255  # grey level that transparency and padding become
    horizontal_flip: bool = False
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    max_bad_fraction: Fraction = 0.05  # more unreadable images than this end the run
    revision: str | None = None  # of a Hub data set


class ToyOptions(Settings):
    """Points with a known density, of which the denoiser can be exact."""

    name: str = "swiss_roll"  # gaussian, mixture, 8_gaussians or swiss_roll
    size: Count = 100_000  # training points; validation has a tenth of that
    captions: bool = False  # name each point's part ('north east mode'), where the toy has parts


class DigitOptions(Settings):
    """Handwritten digits with drawn colours and styles; the captions' parts are drawn anew at load time."""

    heldout: bool = True  # keep some pairs of digit and colour out of training, to be asked for afterwards
    copies: Count = 8  # colourings of each handwritten digit
    limit: Annotated[int, Field(ge=0)] = 0  # keep the first N handwritten training digits (0 = all); for quick runs
    colour: Fraction = 0.85  # probability that a caption names the colour
    digit: Fraction = 0.9  # '7'; otherwise just 'digit'
    ground: Fraction = 0.5  # 'on a white ground'
    thickness: Fraction = 0.4  # 'thin', 'plain', 'thick'
    slant: Fraction = 0.4  # 'left-leaning', 'upright', 'right-leaning'
    generic: Fraction = 0.25  # probability that a slant is said without its direction: 'slanted'
    words: Fraction = 0.3  # probability that the digit is spelled: 'seven'
    after: Fraction = 0.25  # probability that the colour comes behind: 'a 7 in red'
    plain: Fraction = 0.15  # probability that a caption is digit and colour alone: what most people type


class MixtureOptions(Settings):
    """How the made-up images that some data sets offer, such as recombined glyphs, are mixed into denoiser training."""

    share: Fraction = 0.5  # of the images at noisier times than `above`
    above: Fraction = 0.4  # the time, 1 = noise, below which only real images are trained on


class DataOptions(Settings):
    # "glyphs", "digits", "toy", a folder, a .parquet file, or a Hub data set id (user/name)
    source: Named = "glyphs"
    resolution: Annotated[int, Field(ge=16, le=1024, multiple_of=8)] = 64
    channels: Literal[1, 3] = 1
    cache_dir: Place = Path("cache")  # rendered glyphs and latents
    glyphs: GlyphOptions = GlyphOptions()
    files: FileOptions = FileOptions()
    toy: ToyOptions = ToyOptions()
    digits: DigitOptions = DigitOptions()
    mixture: MixtureOptions = MixtureOptions()


class OptimOptions(Settings):
    name: Literal["adamw", "muon"] = "adamw"  # muon = orthogonal steps for hidden matrices and kernels, AdamW elsewhere
    lr: Positive = 1e-3
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    weight_decay: Weight = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    schedule: Literal["constant", "cosine", "wsd"] = "wsd"  # wsd = warm-up, stable, then a linear decay to 0
    decay_fraction: Fraction = 0.3  # of all steps, for wsd
    grad_clip: Positive = 1.0


class TrainOptions(Settings):
    num_steps: Count = 1000
    batch_size: Count = 64  # the global batch: all processes and accumulation steps together
    gradient_accumulation_steps: Count = 1
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # auto = bf16 where the hardware has it
    compile: bool = False
    gradient_checkpointing: bool = False  # compute activations anew in the backward pass: less memory, a third slower
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999  # 0 = no EMA
    log_every: Count = 20
    sample_every: Annotated[int, Field(ge=0)] = 500  # pictures and validation; 0 = only at the end
    save_every: Count = 500
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    num_workers: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 0  # CPU threads per process; 0 = torch's choice
    planned_minutes: Weight | None = None  # what `ldm plan` foretold; the log compares it with what the run took
    report_to: list[Literal["tensorboard", "wandb", "comet_ml", "mlflow", "none"]] = ["tensorboard"]


class RunSettings(Settings):
    """What every trainer has."""

    name: str = "run"
    output_dir: Place | None = None  # default: runs/<name>/<part>
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: DataOptions = DataOptions()
    optim: OptimOptions = OptimOptions()
    train: TrainOptions = TrainOptions()


class ClipModel(Settings):
    vocab_size: Annotated[int, Field(ge=514, le=49408)] = 4096  # 512 bytes, 2 marks, the rest learned
    context_length: Annotated[int, Field(ge=8, le=77)] = 32
    width: Count = 128  # of the text tower
    layers: Count = 4
    heads: Count = 4
    embed_dim: Count = 128  # of the shared space
    vision_width: Count = 128
    vision_layers: Count = 4
    vision_heads: Count = 4
    patch_size: Count = 8

    @model_validator(mode="after")
    def _heads_divide(self):
        for width, heads, what in ((self.width, self.heads, ""), (self.vision_width, self.vision_heads, "vision_")):
            if width % heads:
                raise ValueError(f"{what}width ({width}) must be a multiple of {what}heads ({heads})")
        return self


class ClipSettings(RunSettings):
    model: ClipModel = ClipModel()


class VaeModel(Settings):
    kind: Literal["kl", "vq"] = "kl"  # AutoencoderKL, or VQModel, whose decoder sees only the vectors of a codebook
    codebook_size: Annotated[int, Field(ge=2, le=65536)] = 512  # of vq: each latent place holds log2 of it in bits
    latent_channels: Count = 4
    block_out_channels: Widths = [32, 64, 128]  # downsampling factor f = 2 ** (len - 1): 3 widths f4, 4 f8, 5 f16
    layers_per_block: Count = 1
    norm_num_groups: Count = 8
    mid_attention: bool = False

    @model_validator(mode="after")
    def _groups_divide(self):
        if any(c % self.norm_num_groups for c in self.block_out_channels):
            raise ValueError(f"block_out_channels {self.block_out_channels} must be multiples of norm_num_groups")
        if self.factor > 32:
            raise ValueError(
                f"block_out_channels {self.block_out_channels} would make latents {self.factor} times smaller "
                "each way; give 3 widths for f = 4, 4 for 8, 5 for 16, at most 6"
            )
        return self

    @property
    def factor(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)


class VaeLoss(Settings):
    l1: Weight = 1.0
    edge: Weight = 1.0  # L1 of the image gradients
    perceptual: Weight = 0.1
    kl: Weight = 1e-5  # per latent element, relative to the mean reconstruction error per pixel
    commitment: Weight = 0.25  # of vq: how strongly the encoder is held to its codes
    codebook_decay: Annotated[float, Field(ge=0, lt=1)] = 0.97  # of vq: codes follow moving averages of their vectors
    revive_after: Count = 50  # of vq: steps without use after which a code is put where one is missing
    adversarial: Weight = 0.0  # PatchGAN hinge loss; 0 = no discriminator at all
    adversarial_start: Fraction = 0.5  # of all steps


class VaeSettings(RunSettings):
    model: VaeModel = VaeModel()
    loss: VaeLoss = VaeLoss()
    crop: Annotated[int, Field(ge=0)] = 0  # train on random crops of this many pixels; 0 = whole images


class TextOptions(Settings):
    # "run" = the CLIP run beside this one, a folder with a CLIP run or a text_encoder, "none" = unconditional,
    # "new" = a small tower of its own, trained with the denoiser, or "open_clip:ARCH/TAG", "open_clip:hf-hub:...",
    # "open_clip:local-dir:..." = a pretrained tower
    source: Named = "run"
    train: bool = False  # fine-tune the tower together with the denoiser; a new one always is
    width: Annotated[int, Field(ge=8, multiple_of=4)] = 64  # of a new tower, which has 4 heads
    layers: Count = 1  # of a new tower


class UNetModel(Settings):
    # how text enters: "cross_attention" at the levels below, "modulation" of the time embedding alone, which scales and
    # shifts every block (FiLM, AdaGN), or "concatenation" of a map of it with the input
    conditioning: Conditioning = "cross_attention"
    block_out_channels: Widths = [64, 128, 256]
    layers_per_block: Count = 1
    attention_levels: list[Annotated[int, Field(ge=0)]] = [1, 2]  # levels with cross-attention; 0 = finest
    heads: Count = 4  # the number of attention heads
    norm_num_groups: Count = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    pooled_text: bool = True  # with cross-attention, text also enters through the time embedding (attention-pooled)
    mid_block: bool = True
    attention: Literal["auto", "sdpa", "xformers"] = "auto"

    @model_validator(mode="after")
    def _levels_exist(self):
        if any(level >= len(self.block_out_channels) for level in self.attention_levels):
            raise ValueError(f"attention_levels {self.attention_levels} name levels beyond block_out_channels")
        if any(c % self.norm_num_groups for c in self.block_out_channels):
            raise ValueError(f"block_out_channels {self.block_out_channels} must be multiples of norm_num_groups")
        return self


class MlpModel(Settings):
    """The denoiser of points."""

    width: Count = 128
    layers: Count = 4


class NoiseOptions(Settings):
    process: Process = "flow"
    prediction_type: Prediction = "flow"
    timesteps: TimeDensity = "logit_normal"  # which times are trained on
    stratified: bool = True  # one time from each of batch_size equal parts
    shift: Positive = 1.0  # resolution shift towards noise: ln(snr) falls by 2 ln(shift) at every time
    zero_terminal_snr: bool = False  # rescale a tabled process so that the last step is nothing but noise
    weight: LossWeight = "uniform"  # uniform = of what is predicted, whatever that is
    weight_parameter: Weight | None = None  # the weight's number, such as min_snr's gamma; null = the paper's
    learned_variance: bool = False  # the network also predicts the reverse variance (hybrid loss)
    vlb_weight: Weight = 0.001  # of the variational bound beside the mean squared error

    @model_validator(mode="after")
    def _fits(self):
        owns = {"flow": ["flow"], "karras": ["v_prediction"]}
        allowed = owns.get(self.process, ["v_prediction", "epsilon", "sample"])
        if self.prediction_type not in allowed:
            raise ValueError(
                f"process {self.process} does not go with prediction_type {self.prediction_type}: use "
                + " or ".join(allowed)
            )
        tabled = self.process not in owns
        for name in ("zero_terminal_snr", "learned_variance"):
            if getattr(self, name) and not tabled:
                raise ValueError(f"{name} needs a tabled process (linear, scaled_linear, cosine, sigmoid)")
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError("zero_terminal_snr needs prediction_type v_prediction or sample: pure noise hides x0")
        return self


class SamplingOptions(Settings):
    """The model's best settings: defaults of the exported pipeline."""

    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] = 20
    guidance_scale: Annotated[float, Field(ge=0)] = 3.0
    guidance_interval: tuple[Fraction, Fraction] = (0.0, 1.0)  # guide only at these times; 0 = data, 1 = noise
    guidance_rescale: Fraction = 0.0  # how far to undo the contrast that guidance adds
    sampler: SamplerName = "dpmpp_2m"
    time_grid: GridName = "uniform"  # at which times the steps stop
    eta: Fraction | None = None  # share of new noise, of ddim and euler_ancestral; null = 0 and 1
    prompts: list[str] = []  # of the sample grids; empty = drawn from the validation captions
    per_prompt: Count = 4
    judged: Annotated[int, Field(ge=0)] = 40  # further pictures of glyphs or digits, for shares that obey; 0 = none


class DistillOptions(Settings):
    """A student of a finished model, for few steps without guidance."""

    teacher: Place | None = None  # a finished LDM run or an exported folder; null = learn from the data, as usual
    steps: Annotated[int, Field(ge=0, le=100)] = 4  # of the student; 0 = any number: only the guidance is folded in
    substeps: Count = 2  # of the teacher, for each of the student's
    guidance_scale: Annotated[float, Field(ge=0)] = 3.0  # of the teacher
    guidance_interval: tuple[Fraction, Fraction] = (0.0, 1.0)  # the teacher is guided only at these times
    sampler: SamplerName = "dpmpp_2m"  # of the teacher


class StartOptions(Settings):
    """A finished model to go on from: with all of its U-Net, or with low-rank adapters (LoRA) beside its layers."""

    # an exported folder, a finished LDM run, a Hub id, or one that ships ("glyphs"); null = from random weights
    model: Named | None = None
    lora_rank: Annotated[int, Field(ge=0, le=1024)] = 0  # of the adapters; 0 = none: the whole U-Net learns
    lora_alpha: Positive = 8.0  # adapters count alpha / rank times
    lora_text: bool = False  # adapters in the text encoder's attention too
    # layers that get one: all whose name ends so
    lora_targets: Annotated[list[str], Field(min_length=1)] = ["to_q", "to_k", "to_v", "to_out.0"]

    @model_validator(mode="after")
    def _fits(self):
        if self.lora_rank and self.model is None:
            raise ValueError("lora_rank needs start.model, the model that the adapters are for")
        if self.lora_text and not self.lora_rank:
            raise ValueError("lora_text needs a lora_rank above 0; text.train trains the whole text encoder")
        return self


class AlignmentOptions(Settings):
    """The U-Net's middle is drawn towards the features of an image tower, early in training."""

    weight: Weight = 0.0  # of the cosine distance beside the loss; 0 = off
    source: Named = "run"  # "run" = the CLIP run beside this one, or the folder of one
    until: Fraction = 0.4  # of all steps


class LdmSettings(RunSettings):
    # "run" = the VAE run beside this one, a folder with a VAE run or an AutoencoderKL, or "identity" = pixel space
    vae: Named = "run"
    text: TextOptions = TextOptions()
    denoiser: Literal["unet", "mlp"] = "unet"  # mlp = for points
    model: UNetModel = UNetModel()
    mlp: MlpModel = MlpModel()
    noise: NoiseOptions = NoiseOptions()
    alignment: AlignmentOptions = AlignmentOptions()
    caption_dropout: Fraction = 0.1
    sampling: SamplingOptions = SamplingOptions()
    distill: DistillOptions = DistillOptions()
    start: StartOptions = StartOptions()

    @model_validator(mode="after")
    def _one_beginning(self):
        if self.start.model and self.distill.teacher:
            raise ValueError("start.model and distill.teacher exclude each other: a student starts as its teacher")
        if self.start.lora_rank and self.text.train:
            raise ValueError("start.lora_rank trains adapters alone: set start.lora_text in place of text.train")
        return self


PARTS: dict[str, type[RunSettings]] = {"clip": ClipSettings, "vae": VaeSettings, "ldm": LdmSettings}
