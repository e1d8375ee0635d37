"""Text: a small tokenizer trained on the captions, CLIP trained contrastively on the pairs, and finding text towers.

The two towers are a stock transformers `CLIPModel`, so the text tower already is the `CLIPTextModel` that an export
holds. Loss: InfoNCE over the global batch, symmetric (Radford et al. 2021, arXiv 2103.00020, fig. 3). The null caption
is the empty string: what caption dropout trains, and what 'unconditional' means.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from ldm.config.settings import ClipModel, ClipSettings
from ldm.data import ImageTextData, Splits, identity_of, spread
from ldm.models.autoencoder import to_images
from ldm.training.trainer import Rows, Sample, mix
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.errors import UserError
from ldm.utils.untrusted_files import vetted

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CAPTIONS_FOR_TOKENIZER = 100_000


def train_tokenizer(captions: Iterable[str], vocab_size: int, context_length: int) -> CLIPTokenizer:
    """A byte-level BPE in the `CLIPTokenizer` class, at most `vocab_size` entries; nothing is out of vocabulary."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    template = CLIPTokenizer().backend_tokenizer  # for CLIP's own normalizer and pre-tokenizer
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = template.normalizer, template.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bytes_only = sorted(alphabet) + [f"{byte}</w>" for byte in sorted(alphabet)]
    trainer = BpeTrainer(vocab_size=vocab_size, end_of_word_suffix="</w>", show_progress=False, min_frequency=2)
    bpe.train_from_iterator(captions, trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned["merges"]]
    words = list(dict.fromkeys([*bytes_only, *("".join(pair) for pair in merges)]))[: vocab_size - 2]
    kept = set(words)
    vocab = {word: i for i, word in enumerate([*words, BOS, EOS])}
    merges = [pair for pair in merges if "".join(pair) in kept and kept.issuperset(pair)]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context_length)


def run_tokenizer(run: Path, model: ClipModel, data: ImageTextData, seed: int) -> CLIPTokenizer:
    """The run's own tokenizer: trained by the main process at the first start, read by everyone ever after.

    Training breaks ties between equally common pairs in no fixed order, so a second training would shift token ids
    under weights that have learned the first ones.
    """
    folder = run / "tokenizer"
    if PartialState().is_main_process and (not checkpoint.saved(run / "checkpoints") or checkpoint.verify(folder)):
        captions = draw_captions(data, min(CAPTIONS_FOR_TOKENIZER, 50 * len(data)), seed)
        with checkpoint.staged(folder) as stage:
            train_tokenizer(captions, model.vocab_size, model.context_length).save_pretrained(stage)
    return CLIPTokenizer.from_pretrained(folder)


def tokenizer_digest(tokenizer: CLIPTokenizer) -> str:
    """sha256, as hex, over all that decides the token ids of a caption."""
    _forget_last_call(tokenizer)
    rest = f"{tokenizer.model_max_length} {sorted(tokenizer.special_tokens_map.items())}"
    return hashlib.sha256(f"{tokenizer.backend_tokenizer.to_str()} {rest}".encode()).hexdigest()


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write it as it was made, whatever it was used for since."""
    _forget_last_call(tokenizer)
    tokenizer.save_pretrained(folder)


def _forget_last_call(tokenizer: CLIPTokenizer) -> None:
    """The library keeps length and padding of a call in the tokenizer, and would save and compare them with it."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def draw_captions(data: ImageTextData, count: int, seed: int) -> list[str]:
    """`count` captions of random items (all items at least once where count allows)."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(data)) for _ in range(-(-count // len(data)))])[:count]
    return [data.caption(int(i), rng) for i in order]


def caption_of(data: ImageTextData, sample: Sample, seed: int) -> str:
    """The caption drawn for this item in this epoch: the same in every process and after a resume."""
    return data.caption(sample.index, np.random.default_rng([seed, 3, sample.epoch, sample.index]))


def encode(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (B, L), int64, padded and cut to the tokenizer's length, as the stock pipeline does."""
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids


class TokenRows:
    """`encode` that remembers: tokenizing is most of the work of a batch of cached latents.

    Args:
        limit: captions kept; all are forgotten when there are more.
    """

    def __init__(self, tokenizer: CLIPTokenizer, limit: int = 2**15):
        self.tokenizer, self.limit = tokenizer, limit
        self._rows: dict[str, np.ndarray] = {}

    def __call__(self, captions: list[str]) -> Tensor:
        """Token ids (B, L), int64."""
        if len(self._rows) > self.limit:
            self._rows.clear()
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._rows]
        if new:
            self._rows.update(zip(new, encode(self.tokenizer, new).numpy(), strict=True))
        return torch.from_numpy(np.stack([self._rows[caption] for caption in captions]))


def text_config(model: ClipModel, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=model.width,
        intermediate_size=4 * model.width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        max_position_embeddings=model.context_length,
        projection_dim=model.embed_dim,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_clip(model: ClipModel, resolution: int, channels: int, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Both towers, randomly initialised. Raises: UserError if the patches do not tile the image."""
    if resolution % model.patch_size:
        raise UserError(f"data.resolution {resolution} must be a multiple of model.patch_size {model.patch_size}")
    vision = CLIPVisionConfig(
        hidden_size=model.vision_width,
        intermediate_size=4 * model.vision_width,
        num_hidden_layers=model.vision_layers,
        num_attention_heads=model.vision_heads,
        image_size=resolution,
        patch_size=model.patch_size,
        num_channels=channels,
        projection_dim=model.embed_dim,
    )
    text = text_config(model, tokenizer)
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=model.embed_dim)
    )


def gather(local: Tensor) -> Tensor:
    """Rows of all processes, (world * B, ...); gradients flow back to each process's own."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return local
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(local))


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, input_ids: Tensor) -> Tensor:
    """Symmetric InfoNCE of unit features (B, D), in nats; `scale` = 1 / temperature, `input_ids` (B, L).

    Pairs with the same caption are equally right for each other's image ('horizontal stacked glyph' fits most glyphs),
    as in Yang et al. 2022, arXiv 2204.03610, eq. 3 and 4; with all captions different it is CLIP's loss.
    """
    # Logits reach 100, where bf16 has steps of a half.
    with torch.autocast("cuda" if image.is_cuda else "cpu", enabled=False):
        logits = scale * image @ text.T
        same = (input_ids.unsqueeze(0) == input_ids.unsqueeze(1)).all(-1).to(logits)
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class ClipObjective(nn.Module):
    """Both towers and their loss: forward gives the InfoNCE over the batch of all processes."""

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip

    def features(self, images: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features of images (B, C, H, W) in [-1, 1] and tokens (B, L): two tensors (B, embed_dim), float32."""
        vision = self.clip.vision_model(pixel_values=images).pooler_output
        text = self.clip.text_model(input_ids=input_ids).pooler_output
        return (
            F.normalize(self.clip.visual_projection(vision).float(), dim=-1),
            F.normalize(self.clip.text_projection(text).float(), dim=-1),
        )

    def forward(self, images: Tensor, input_ids: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        image, text = self.features(images, input_ids)
        scale = self.clip.logit_scale.exp().clamp(max=100)
        loss = contrastive_loss(gather(image), gather(text), scale, gather(input_ids))
        return loss, {"temperature": 1 / scale}


def recall_at(image: Tensor, text: Tensor, ks=(1, 5, 10)) -> dict[str, float]:
    """Share of texts whose own image is among the k nearest of all, and of images likewise; unit features (N, D).

    Ties are counted as half: a constant feature scores what chance would.
    """
    similarity = text @ image.T
    numbers: dict[str, float] = {}
    for name, matrix in (("text_to_image", similarity), ("image_to_text", similarity.T)):
        own = matrix.diagonal().unsqueeze(1)
        rank = (matrix > own).sum(1) + ((matrix == own).sum(1) - 1) / 2
        numbers |= {f"{name}_recall@{k}": (rank < k).float().mean().item() for k in ks}
    return numbers


class ClipTask:
    """Teaches both towers: see `ldm.training.trainer.Task`."""

    find_unused_parameters = False
    channels_last = False

    def __init__(self, settings: ClipSettings, data: Splits, run: Path):
        if not data.train.has_captions:
            raise UserError(
                f"{settings.data.source} has no captions, so there is nothing to train a text encoder on; "
                "set ldm.text.source: none to train an unconditional model"
            )
        self.settings, self.data = settings, data
        if settings.train.gradient_accumulation_steps > 1:
            raise UserError(
                "train.gradient_accumulation_steps must be 1 for train_clip.py: each pair is told from the others in "
                "its batch, and accumulated parts would not see each other; lower train.batch_size instead"
            )
        self.tokenizer = run_tokenizer(run, settings.model, data.train, settings.seed)
        self.identity = identity_of(data.train) | {"tokenizer": tokenizer_digest(self.tokenizer)}
        torch.manual_seed(mix(settings.seed, 1))
        self.model = build_clip(settings.model, data.train.resolution, data.train.channels, self.tokenizer)
        if not torch.cuda.is_available():  # torch's fused attention has a backward five times slower in bf16 on CPU
            self.model.set_attn_implementation("eager")
        self.module = ClipObjective(self.model)
        self.num_samples = len(data.train)

    def batch(self, samples: list[Sample], rows: Rows) -> dict[str, Tensor]:
        captions = [caption_of(self.data.train, sample, self.settings.seed) for sample in samples]
        images = to_images(np.stack([self.data.train.image(sample.index) for sample in samples]))
        return {"images": images, "input_ids": encode(self.tokenizer, captions)}

    @torch.no_grad()
    def report(self, folder: Path, label: str, limit: int = 512) -> dict[str, float]:
        """Retrieval among (at most 512) validation pairs, each with one fixed caption."""
        data, device = self.data.validation, self.model.device
        images, texts = [], []
        chosen = spread(len(data), limit).tolist()
        for start in range(0, len(chosen), 64):
            indices = chosen[start : start + 64]
            captions = [caption_of(data, Sample(i, 0), self.settings.seed) for i in indices]
            pixels = to_images(np.stack([data.image(i) for i in indices]))
            pair = self.module.features(pixels.to(device), encode(self.tokenizer, captions).to(device))
            images.append(pair[0].cpu())
            texts.append(pair[1].cpu())
        return recall_at(torch.cat(images), torch.cat(texts))

    def finish(self, folder: Path) -> None:
        """`clip` (both towers), `text_encoder` (the text tower alone) and `tokenizer`, as transformers writes them."""
        self.model.save_pretrained(folder / "clip")
        tower(self.model).save_pretrained(folder / "text_encoder")
        save_tokenizer(self.tokenizer, folder / "tokenizer")


def tower(clip: CLIPModel) -> CLIPTextModel:
    """The text tower of a CLIPModel as a model of its own, sharing no weights with it."""
    alone = CLIPTextModel(clip.config.text_config)
    inner = alone.text_model if hasattr(alone, "text_model") else alone
    inner.load_state_dict(clip.text_model.state_dict())
    return alone.eval()


def null_text() -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The smallest text encoder there is, for models without captions: it only ever sees the null caption."""
    tokenizer = train_tokenizer([], vocab_size=514, context_length=8)
    torch.manual_seed(0)
    model = ClipModel(vocab_size=514, context_length=8, width=32, layers=1, heads=1, embed_dim=32)
    return CLIPTextModel(text_config(model, tokenizer)).eval(), tokenizer


def new_text(width: int, layers: int, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text tower with 4 heads, to be trained together with the denoiser."""
    model = ClipModel(width=width, layers=layers, heads=4, context_length=tokenizer.model_max_length)
    return CLIPTextModel(text_config(model, tokenizer))


def load_text(folder: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """Text encoder and tokenizer of a finished CLIP run, or of any folder that holds both."""
    for candidate in (folder / "final", folder):
        if (candidate / "text_encoder" / "config.json").is_file() and (candidate / "tokenizer").is_dir():
            where = vetted(candidate / "text_encoder")
            try:
                encoder = CLIPTextModel.from_pretrained(where, use_safetensors=True, dtype=torch.float32)
                return encoder.eval(), CLIPTokenizer.from_pretrained(candidate / "tokenizer")
            except Exception as error:  # the library has many exceptions for a broken file
                raise UserError(
                    f"the text encoder in {candidate} cannot be read: {str(error).splitlines()[0]}"
                ) from error
    raise UserError(
        f"no finished text encoder in {folder}: run train_clip.py first, point --text.source to a folder that holds "
        "text_encoder/ and tokenizer/, or use open_clip:ARCH/TAG, or none"
    )
