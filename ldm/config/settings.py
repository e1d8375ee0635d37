"""Typed, strict settings for the three trainers, and how they are read from YAML and the command line.

One YAML file describes one project: shared keys (`data`, `seed`, `train`, `optim`) at the top, and one block per
part (`clip`, `vae`, `ldm`) with what differs there. `extends: other.yaml` starts from another file.
"""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    WrapValidator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ldm.utils.image_sizes import Size, bucket_sizes, resolution_of, size_of

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Widths = Annotated[list[Count], Field(min_length=1)]
Weight = Annotated[float, Field(ge=0)]
Place = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]  # "~/runs" is not a folder "~"
Named = Annotated[str, AfterValidator(os.path.expanduser)]  # a place, or one of a few words, or a Hub id
Side = Annotated[int, Field(ge=16, le=1024, multiple_of=8)]


def _one_or_two_sides(value: Any, _: Any) -> int | Size:
    """A side or [height, width], checked as that alone: a union's errors would be about both."""
    if not isinstance(value, list | tuple):
        return _SIDE.validate_python(value, strict=True)
    return resolution_of(_SIDES.validate_python(tuple(value), strict=True))


_SIDE: TypeAdapter[int] = TypeAdapter(Side)
_SIDES: TypeAdapter[Size] = TypeAdapter(tuple[Side, Side])
Resolution = Annotated[Side | tuple[Side, Side], WrapValidator(_one_or_two_sides)]


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
    """Base of every settings class: unknown keys are errors, instances are frozen.

    The text below a field is its explanation in --help and in the editor (`json_schema`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class CaptionOptions(Settings):
    """Probabilities of the phrases of a glyph's caption, sampled anew each time it is read."""

    layout: Fraction = 0.85
    """Probability that a caption names the layout ('horizontal stacked glyph')."""
    radical: Fraction = 0.5
    """Probability of 'with the water radical'."""
    meaning: Fraction = 0.5
    """Probability of the English definition."""
    style: Fraction = 0.4
    """Probability of 'in sans style' or 'in serif style'; never with `font_file`."""
    strokes: Fraction = 0.2
    """Probability of the number of strokes: '12 strokes'."""
    shuffle: Fraction = 0.2
    """Probability that the phrases are in random order."""
    synonyms: Fraction = 0.15
    """Probability that the layout is given by a synonym."""
    plain: Fraction = 0.1
    """Probability that a caption is the layout phrase alone, as most prompts are."""
    places: Fraction = 0.0
    """Probability that components are named with their positions: 'water on the left, horse on the right'."""
    typed: Fraction = 0.0
    """Probability that a caption is in one of the short forms that users type."""


class GlyphOptions(Settings):
    styles: list[Literal["hei", "song"]] = ["hei", "song"]
    """Typefaces of the packaged fonts: sans (hei) and serif (song)."""
    font_file: Place | None = None
    """A .ttf, .otf or .ttc file to render instead of the packaged fonts."""
    characters: Literal["all", "common"] = "all"
    """The character set; common = GB2312, about 6,700 characters."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Keep the first N training characters, for quick runs; 0 = all."""
    captions: CaptionOptions = CaptionOptions()
    """How captions are composed."""
    hold_out_later: bool = False
    """Also hold out the second 15 (radical, layout) pairs, which the shipped models were trained on."""
    balance: Fraction = 0.0
    """A (radical, layout) with n images is sampled in proportion to n ** (1 - balance)."""
    recombined: Annotated[int, Field(ge=0)] = 0
    """Number of new glyphs made of components that never occur together, mixed in as `mixture` says."""


class FileOptions(Settings):
    """How a folder, a parquet file or a Hub data set is read."""

    image_column: str = "image"
    """Column of the images, or of their paths, in a table or Hub data set."""
    caption_column: str = "text"
    """Column of the captions, each one string or a list; "" = no captions."""
    class_captions: bool = False
    """Images without a caption take the name of their folder: red_apple/1.png is 'red apple'."""
    repeats: bool = False
    """Sample images in a folder 10_fruit ten times as often as those in 1_face (kohya's naming)."""
    shuffle_tags: bool = False
    """Shuffle the comma-separated tags of a caption each time it is used."""
    keep_tags: Annotated[int, Field(ge=0)] = 0
    """Number of tags at the start that shuffle_tags leaves in place."""
    resize: Literal["crop", "pad", "stretch"] = "crop"
    """Centre crop, pad with the background colour, or stretch to the size."""
    bucket_step: Annotated[int, Field(ge=0, le=512, multiple_of=8)] = 0
    """Aspect-ratio buckets: sizes of about as many pixels as `data.resolution`, with sides that are multiples of this
    many pixels; each image gets the one nearest to its shape. 0 = all images have one size."""
    background: Annotated[int, Field(ge=0, le=255)] = 255
    """Grey level that replaces transparency and fills padding; with `data.channels` 4 both are transparent."""
    horizontal_flip: bool = False
    """Flip half of the training images."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Fraction of the images that is kept for validation."""
    max_bad_fraction: Fraction = 0.05
    """Stop if a larger fraction of the images cannot be read."""
    revision: str | None = None
    """Revision of a Hub data set."""


class ShardOptions(Settings):
    """How shards are read, which `data.source` names by a pattern."""

    lanes: Count = 8
    """Readers that begin at equal distances in the data set and take turns: a batch comes from as many shards."""
    window: Count = 4096
    """Number of images, of all lanes together, that are shuffled among one another. A process keeps the row groups of
    parquet files for them, up to 256 MiB; tar files need no memory."""


class ToyOptions(Settings):
    """Points of a known density, for which the exact denoiser exists."""

    name: str = "swiss_roll"
    """The distribution: gaussian, mixture, 8_gaussians or swiss_roll."""
    size: Count = 100_000
    """Number of training points; validation and test have a tenth each."""
    captions: bool = False
    """Caption each point with its component ('north east mode'), if the distribution has named ones."""


class DigitOptions(Settings):
    """Handwritten digits in random colours and styles; captions are sampled anew each time they are read."""

    heldout: bool = True
    """Keep some pairs of digit and colour out of training, to evaluate on them."""
    copies: Count = 8
    """Colourings of each handwritten digit."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Keep the first N handwritten training digits, for quick runs; 0 = all."""
    colour: Fraction = 0.85
    """Probability that a caption names the colour."""
    digit: Fraction = 0.9
    """Probability that a caption names the digit ('7'); otherwise it says 'digit'."""
    ground: Fraction = 0.5
    """Probability that a caption names the background: 'on a white ground'."""
    thickness: Fraction = 0.4
    """Probability of 'thin', 'plain' or 'thick'."""
    slant: Fraction = 0.4
    """Probability of 'left-leaning', 'upright' or 'right-leaning'."""
    generic: Fraction = 0.25
    """Probability that a slant is given without its direction: 'slanted'."""
    words: Fraction = 0.3
    """Probability that the digit is spelled: 'seven'."""
    after: Fraction = 0.25
    """Probability that the colour follows the digit: 'a 7 in red'."""
    plain: Fraction = 0.15
    """Probability that a caption is digit and colour alone, as most prompts are."""


class MixtureOptions(Settings):
    """How the synthetic images of a data set, such as recombined glyphs, are mixed into training."""

    share: Fraction = 0.5
    """Fraction of synthetic images among those that the denoiser is trained on at times above `above`."""
    above: Fraction = 0.4
    """Only real images are trained on below this time; 0 = data, 1 = noise."""
    contrastive: Fraction = 0.3
    """Fraction of synthetic images in the training of CLIP."""


class DataOptions(Settings):
    source: Named = "glyphs"
    """'glyphs', 'digits', 'toy', a folder, a .parquet file, a Hub data set id (user/name), or a pattern of shards that
    are streamed: shards/*.tar, shards/{000..127}.parquet, hf://datasets/user/name/data/*.parquet."""
    resolution: Resolution = 64
    """Side of square images in pixels, or [height, width]."""
    channels: Literal[1, 3, 4] = 1
    """1 = grey, 3 = RGB, 4 = RGB and alpha: transparent images, of one's own."""
    cache_dir: Place = Path("cache")
    """Folder of rendered glyphs, decoded images and latents."""
    glyphs: GlyphOptions = GlyphOptions()
    """Settings of the source 'glyphs'."""
    files: FileOptions = FileOptions()
    """Settings of folders, parquet files and Hub data sets."""
    shards: ShardOptions = ShardOptions()
    """Settings of streamed shards."""
    toy: ToyOptions = ToyOptions()
    """Settings of the source 'toy'."""
    digits: DigitOptions = DigitOptions()
    """Settings of the source 'digits'."""
    mixture: MixtureOptions = MixtureOptions()
    """How synthetic images are mixed in."""

    @model_validator(mode="after")
    def _sides_fit_buckets(self) -> Self:
        step = self.files.bucket_step
        if step and any(side % step for side in self.size):
            raise ValueError(f"resolution {self.resolution} must be a multiple of files.bucket_step {step}")
        return self

    @property
    def size(self) -> Size:
        """(height, width) of the images; with buckets, of those of the most usual shape."""
        return size_of(self.resolution)

    @property
    def sizes(self) -> list[Size]:
        """The sizes that images may have: one, or those of all buckets."""
        return bucket_sizes(self.size, self.files.bucket_step) if self.files.bucket_step else [self.size]


class OptimOptions(Settings):
    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """The optimizer; muon = orthogonalized updates for hidden matrices and kernels, AdamW for the rest; adamw8bit = a
    byte for each moment, by bitsandbytes."""
    lr: Positive = 1e-3
    """Peak learning rate."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    """Momentum coefficients of AdamW."""
    weight_decay: Weight = 0.01
    """Decoupled weight decay."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps of linear warm-up."""
    schedule: Literal["constant", "cosine", "wsd"] = "wsd"
    """Learning rate after warm-up; wsd = stable, then linear decay to 0."""
    decay_fraction: Fraction = 0.3
    """Fraction of all steps in which wsd decays."""
    grad_clip: Positive = 1.0
    """Largest gradient norm."""


class TrainOptions(Settings):
    num_steps: Count = 1000
    """Number of optimizer steps."""
    batch_size: Count = 64
    """Global batch size: all processes and accumulation steps together."""
    gradient_accumulation_steps: Count = 1
    """Forward and backward passes per optimizer step; if it is not set, what `accelerate launch` asks for."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """auto = what `accelerate launch` or its config file asks for, else bf16 where the hardware has it."""
    compile: bool = False
    """Compile the model with torch.compile."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the exponential moving average of the weights; 0 = no EMA."""
    ema_offload: bool = False
    """Keep that average in the memory of the CPU: less memory on a GPU, which sends the weights after each step."""
    log_every: Count = 20
    """Steps between log entries."""
    sample_every: Annotated[int, Field(ge=0)] = 500
    """Steps between sample grids and validation; 0 = only at the end."""
    save_every: Count = 500
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    """Number of checkpoints to keep."""
    async_checkpoints: bool = False
    """Write checkpoints while the training continues, from a copy of them in the memory of the CPU."""
    keep_best: bool | None = None
    """Validate checkpoints, keep the one with the lowest validation loss and export its weights; null = for your own
    images. Without held-out images, the last weights are exported."""
    patience: Fraction = 0.25
    """With keep_best: once the validation loss has not fallen for this fraction of all steps, begin the fall of the
    learning rate that wsd ends with, and with it end the training; 0 = never."""
    max_copies: Fraction = 0.25
    """With keep_best: end the training once a larger fraction of generated images are near copies of training images;
    1 = never."""
    num_workers: Annotated[int, Field(ge=0)] | None = None
    """Data loader processes of each process; null = none on a CPU, on a GPU up to 8 of the cores it has for itself."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads per process; 0 = torch's default."""
    hang_minutes: Weight = 10.0
    """Processes that get nowhere together for so long are ended, and those furthest behind are named; 0 = never."""
    planned_minutes: Weight | None = None
    """Estimate of `ldm plan`; the log compares it with the real time."""
    report_to: list[Literal["tensorboard", "wandb", "comet_ml", "mlflow", "none"]] = ["tensorboard"]
    """Experiment trackers."""


class RunSettings(Settings):
    """Settings that all trainers share."""

    name: str = "run"
    """Name of the project; default: the config file's stem."""
    output_dir: Place | None = None
    """Run folder; default: runs/<name>/<part>."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of weights, data order and noise."""
    data: DataOptions = DataOptions()
    """The data set."""
    optim: OptimOptions = OptimOptions()
    """Optimizer and learning rate."""
    train: TrainOptions = TrainOptions()
    """The training loop."""


class ClipModel(Settings):
    vocab_size: Annotated[int, Field(ge=514, le=49408)] = 4096
    """Tokens of the byte-pair encoding: 512 bytes, 2 markers, the rest learned."""
    context_length: Annotated[int, Field(ge=8, le=77)] = 32
    """Tokens per caption; longer captions are cut."""
    width: Count = 128
    """Width of the text encoder."""
    layers: Count = 4
    """Layers of the text encoder."""
    heads: Count = 4
    """Attention heads of the text encoder."""
    embed_dim: Count = 128
    """Dimension of the joint embedding."""
    vision_width: Count = 128
    """Width of the image encoder."""
    vision_layers: Count = 4
    """Layers of the image encoder."""
    vision_heads: Count = 4
    """Attention heads of the image encoder."""
    patch_size: Count = 8
    """Side of the image encoder's patches, in pixels."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        for width, heads, what in ((self.width, self.heads, ""), (self.vision_width, self.vision_heads, "vision_")):
            if width % heads:
                raise ValueError(f"{what}width ({width}) must be a multiple of {what}heads ({heads})")
        return self


class ClipLoss(Settings):
    hard_negatives: Annotated[int, Field(ge=0, le=8)] = 0
    """Wrong variants of each caption, with one word or phrase replaced, that images are also contrasted with."""


class ClipSettings(RunSettings):
    model: ClipModel = ClipModel()
    """Text and image encoder."""
    loss: ClipLoss = ClipLoss()
    """The contrastive loss."""


class VaeModel(Settings):
    kind: Literal["kl", "vq", "linear"] = "kl"
    """kl = AutoencoderKL; vq = VQModel, whose latents are vectors of a codebook; linear = AutoencoderTiny with a fixed
    linear encoder, the principal components of patches: good after minutes, also on a CPU."""
    codebook_size: Annotated[int, Field(ge=2, le=65536)] = 512
    """Of vq: number of codes; a latent position holds log2 of it in bits."""
    latent_channels: Count = 4
    """Channels of the latents."""
    block_out_channels: Widths = [32, 64, 128]
    """Channels per level; downsampling factor f = 2 ** (len - 1): 3 levels f4, 4 f8, 5 f16. Of linear: the decoder's,
    the same at all levels."""
    layers_per_block: Count = 1
    """Residual layers per level. Of linear: residual blocks at the coarsest level, one fewer at each finer one."""
    norm_num_groups: Count = 8
    """Groups of the group norms."""
    mid_attention: bool = False
    """Self-attention at the coarsest level."""

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.kind == "linear" and len(set(self.block_out_channels)) > 1:
            raise ValueError(f"of kind linear all block_out_channels must be equal, got {self.block_out_channels}")
        if self.kind == "linear" and self.factor > 8:
            raise ValueError(f"of kind linear there are at most 4 block_out_channels, got {self.block_out_channels}")
        if self.kind != "linear" and any(c % self.norm_num_groups for c in self.block_out_channels):
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
    """Weight of the L1 reconstruction error."""
    mse: Weight = 0.0
    """Weight of the mean squared error, which sees errors of large areas more than those of edges."""
    edge: Weight = 1.0
    """Weight of the L1 error of image gradients."""
    perceptual: Weight = 0.1
    """Weight of the perceptual loss."""
    kl: Weight = 1e-5
    """Weight of the KL divergence per latent element, relative to the mean reconstruction error per pixel."""
    commitment: Weight = 0.25
    """Of vq: weight of the encoder's distance from its codes."""
    codebook_decay: Annotated[float, Field(ge=0, lt=1)] = 0.97
    """Of vq: decay of the moving averages that the codes follow."""
    revive_after: Count = 50
    """Of vq: steps without use after which a code is replaced."""
    latent_noise: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Of linear: largest standard deviation of noise on the latents that the decoder learns from; a denoiser's are not
    exact."""
    adversarial: Weight = 0.0
    """Weight of the PatchGAN hinge loss; 0 = no discriminator."""
    adversarial_start: Fraction = 0.5
    """Fraction of all steps after which it starts."""


class VaeStart(Settings):
    """Fine-tuning of a finished autoencoder."""

    model: Named | None = None
    """The autoencoder to fine-tune, whose shape then replaces `vae.model`: its folder, a run or an exported model that
    holds one, a Hub id, or one that ships ('autoencoders/f4', 'glyphs'); null = random weights."""


class VaeSettings(RunSettings):
    model: VaeModel = VaeModel()
    """The autoencoder."""
    start: VaeStart = VaeStart()
    """Fine-tuning."""
    loss: VaeLoss = VaeLoss()
    """Its loss."""
    crop: Annotated[int, Field(ge=0)] = 0
    """Train on random crops of this many pixels, for fine-tuning of at least 8 x 8 latents; 0 = whole images."""


class TextOptions(Settings):
    source: Named = "run"
    """'run' = the CLIP run beside this one, 'none' = unconditional, 'new' = a small text encoder trained with the
    denoiser, or a pretrained one: the folder or Hub id of a CLIP model or text encoder (user/name, user/name/subfolder,
    either with @revision), 'open_clip:ARCH/TAG', 'open_clip:hf-hub:...' or 'open_clip:local-dir:...'."""
    train: bool = False
    """Fine-tune the text encoder together with the denoiser; a new one always is."""
    width: Annotated[int, Field(ge=8, multiple_of=4)] = 64
    """Width of a new text encoder, which has 4 heads."""
    layers: Count = 1
    """Layers of a new text encoder."""


class UNetModel(Settings):
    conditioning: Conditioning = "cross_attention"
    """How text enters: 'cross_attention' at `attention_levels`; 'modulation' of scale and shift in every block by the
    time embedding (FiLM, AdaGN); or 'concatenation' of a text-dependent map with the input."""
    block_out_channels: Widths = [64, 128, 256]
    """Channels per level."""
    layers_per_block: Count = 1
    """Residual layers per level."""
    attention_levels: list[Annotated[int, Field(ge=0)]] = [1, 2]
    """Levels with attention; 0 = finest."""
    heads: Count = 4
    """Number of attention heads."""
    norm_num_groups: Count = 32
    """Groups of the group norms."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability."""
    pooled_text: bool = True
    """With cross-attention, add pooled text to the time embedding."""
    mid_block: bool = True
    """Have a middle block at the coarsest level."""
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    """Attention implementation."""

    @model_validator(mode="after")
    def _levels_exist(self) -> Self:
        if any(level >= len(self.block_out_channels) for level in self.attention_levels):
            raise ValueError(f"attention_levels {self.attention_levels} name levels beyond block_out_channels")
        if any(c % self.norm_num_groups for c in self.block_out_channels):
            raise ValueError(f"block_out_channels {self.block_out_channels} must be multiples of norm_num_groups")
        return self


class MlpModel(Settings):
    """The denoiser of points."""

    width: Count = 128
    """Width of the hidden layers."""
    layers: Count = 4
    """Number of hidden layers."""


class NoiseOptions(Settings):
    process: Process = "flow"
    """The noise schedule."""
    prediction_type: Prediction = "flow"
    """What the network predicts."""
    timesteps: TimeDensity = "logit_normal"
    """Density of the times that are trained on."""
    stratified: bool = True
    """Sample one time from each of batch_size equal intervals."""
    shift: Positive = 1.0
    """Resolution shift towards noise: ln(snr) falls by 2 ln(shift) at every time."""
    zero_terminal_snr: bool = False
    """Rescale a tabulated schedule so that its last step is pure noise."""
    weight: LossWeight = "uniform"
    """Loss weight by noise level; uniform = none on the prediction's own error."""
    weight_parameter: Weight | None = None
    """The weight's parameter, such as gamma of min_snr; null = the paper's."""
    learned_variance: bool = False
    """The network also predicts the reverse variance (hybrid loss)."""
    vlb_weight: Weight = 0.001
    """Weight of the variational bound beside the mean squared error."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
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
    """The model's recommended sampling settings, the defaults of the exported pipeline."""

    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Number of sampling steps."""
    guidance_scale: Annotated[float, Field(ge=0)] = 3.0
    """Classifier-free guidance scale; 1 = off."""
    guidance_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Guide only at these times; 0 = data, 1 = noise."""
    guidance_rescale: Fraction = 0.0
    """How far to undo the contrast that guidance adds."""
    sampler: SamplerName = "dpmpp_2m"
    """The sampler."""
    time_grid: GridName = "uniform"
    """The times at which the steps stop."""
    eta: Fraction | None = None
    """Fraction of new noise, of ddim and euler_ancestral; null = 0 and 1."""
    prompts: list[str] = []
    """Prompts of the sample grids; empty = validation captions."""
    per_prompt: Count = 4
    """Images per prompt."""
    judged: Annotated[int, Field(ge=0)] = 40
    """Further images of glyphs or digits, to log prompt adherence; 0 = none."""


class DistillOptions(Settings):
    """Distillation of a finished model into a student that samples in few steps without guidance."""

    teacher: Place | None = None
    """A finished LDM run or an exported folder; null = train on data as usual."""
    steps: Annotated[int, Field(ge=0, le=100)] = 4
    """Sampling steps of the student; 0 = any number: only guidance is distilled."""
    substeps: Count = 2
    """Steps of the teacher for each of the student's."""
    guidance_scale: Annotated[float, Field(ge=0)] = 3.0
    """Guidance scale of the teacher."""
    guidance_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """The teacher is guided only at these times."""
    sampler: SamplerName = "dpmpp_2m"
    """Sampler of the teacher."""


class StartOptions(Settings):
    """Fine-tuning of a finished model: its whole U-Net, or low-rank adapters (LoRA) beside its layers."""

    model: Named | None = None
    """An exported folder, a finished LDM run, a Hub id, or a shipped model ('glyphs'); null = random weights."""
    lora_rank: Annotated[int, Field(ge=0, le=1024)] = 0
    """Rank of the adapters; 0 = none: the whole U-Net is trained."""
    lora_alpha: Positive = 8.0
    """Adapters are scaled by alpha / rank."""
    lora_text: bool = False
    """Also put adapters into the text encoder's attention."""
    lora_targets: Annotated[list[str], Field(min_length=1)] = ["to_q", "to_k", "to_v", "to_out.0"]
    """Layers with an adapter: all whose name ends so."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.lora_rank and self.model is None:
            raise ValueError("lora_rank needs start.model, the model that the adapters are for")
        if self.lora_text and not self.lora_rank:
            raise ValueError("lora_text needs a lora_rank above 0; text.train trains the whole text encoder")
        return self


class AlignmentOptions(Settings):
    """Alignment of the U-Net's middle features with those of an image encoder, early in training."""

    weight: Weight = 0.0
    """Weight of the cosine distance beside the loss; 0 = off."""
    source: Named = "run"
    """'run' = the CLIP run beside this one, or the folder of one."""
    until: Fraction = 0.4
    """Fraction of all steps after which it stops."""


class LdmSettings(RunSettings):
    cache_latents: bool = True
    """Encode all images once, into data.cache_dir; false = those of a batch in each step, which needs no disk."""
    latents_on_device: bool | None = None
    """Keep all cached latents in the memory of the device; null = on a GPU, if they take a quarter of it at most."""
    vae: Named = "run"
    """'run' = the VAE run beside this one, 'identity' = pixel space, an autoencoder that ships ('autoencoders/f4'), or
    the folder or Hub id of one (user/name, user/name/subfolder, either with @revision)."""
    text: TextOptions = TextOptions()
    """The text encoder."""
    denoiser: Literal["unet", "mlp"] = "unet"
    """mlp = for points."""
    model: UNetModel = UNetModel()
    """The U-Net."""
    mlp: MlpModel = MlpModel()
    """The MLP."""
    noise: NoiseOptions = NoiseOptions()
    """Noise process and prediction."""
    alignment: AlignmentOptions = AlignmentOptions()
    """Representation alignment."""
    caption_dropout: Fraction = 0.1
    """Probability of training on the null caption, for classifier-free guidance."""
    sampling: SamplingOptions = SamplingOptions()
    """Default sampling settings."""
    distill: DistillOptions = DistillOptions()
    """Distillation."""
    start: StartOptions = StartOptions()
    """Fine-tuning."""

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.start.model and self.distill.teacher:
            raise ValueError("start.model and distill.teacher exclude each other: a student starts as its teacher")
        if self.start.lora_rank and self.text.train:
            raise ValueError("start.lora_rank trains adapters alone: set start.lora_text in place of text.train")
        return self


PARTS: dict[str, type[RunSettings]] = {"clip": ClipSettings, "vae": VaeSettings, "ldm": LdmSettings}
