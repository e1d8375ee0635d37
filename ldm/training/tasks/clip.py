"""The training of CLIP, whose text encoder conditions the denoiser; and the tokenizer of a run."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from ldm.config.settings import ClipModel, ClipSettings
from ldm.data import ImageTextData, Splits, apart, dataset_fingerprint, epoch_order, evenly_spaced_indices, first_items
from ldm.data.buckets import buckets_of, of_one_size, sizes_of
from ldm.models.caption_swaps import CaptionSwaps
from ldm.models.clip import ClipObjective, build_clip, recall_at
from ldm.models.saving import save_component
from ldm.models.text_encoder import text_tower
from ldm.models.tokenizer import encode, save_tokenizer, tokenizer_digest, train_tokenizer
from ldm.training.data_order import derive_seed
from ldm.training.task import BatchSlice, SampleRef, captions_of, from_mixture
from ldm.training.world import from_main
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.errors import UserError
from ldm.utils.image_tensors import to_images

CAPTIONS_FOR_TOKENIZER = 100_000
RETRIEVED = 512  # validation pairs at most
CAPTIONS_FOR_SWAPS = 1000  # whose words replace those of others


def run_tokenizer(run: Path, model: ClipModel, data: ImageTextData, seed: int) -> CLIPTokenizer:
    """The run's own tokenizer: trained by the main process at the first start, and told to all others.

    Training breaks ties between equally common pairs in no fixed order, so a second training would shift token ids
    under weights that have learned the first ones.
    """
    folder = run / "tokenizer"

    def of_main() -> str:
        if not checkpoint.saved(run / "checkpoints") or checkpoint.verify(folder):
            captions = draw_captions(data, min(CAPTIONS_FOR_TOKENIZER, 50 * len(data)), seed)
            with checkpoint.staged(folder) as stage:
                train_tokenizer(captions, model.vocab_size, model.context_length).save_pretrained(stage)
        return _texts(folder)

    texts = from_main(of_main)
    if _texts(folder) != texts:  # a node with a disk of its own
        with checkpoint.staged(folder) as stage:
            for name, text in json.loads(texts).items():
                (stage / name).write_text(text, encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def _texts(folder: Path) -> str:
    """The files of a tokenizer as JSON: name -> content."""
    files = sorted(folder.glob("*")) if folder.is_dir() else []
    return json.dumps({file.name: file.read_text("utf-8") for file in files if file.name != checkpoint.MANIFEST})


def draw_captions(data: ImageTextData, count: int, seed: int) -> list[str]:
    """`count` captions of random items (each item at least once where `count` allows)."""
    rng = np.random.default_rng(seed)
    if (chosen := first_items(data, count, seed)) is not None:
        return [data.caption(i, rng) for i in chosen]
    order = np.concatenate([rng.permutation(len(data)) for _ in range(-(-count // len(data)))])[:count]
    return [data.caption(int(i), rng) for i in order]


def caption_swaps(data: ImageTextData, seed: int) -> CaptionSwaps:
    """What makes captions of a data set wrong: by its own slots, or with words of other captions."""
    slots = getattr(data, "caption_slots", {})
    return CaptionSwaps(slots, draw_captions(data, min(CAPTIONS_FOR_SWAPS, 50 * len(data)), derive_seed(seed, 8)))


class ClipTask:
    """Trains both towers: see `ldm.training.task.Task`."""

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
                "train.gradient_accumulation_steps must be 1 for `ldm train clip`: pairs are contrasted with "
                "the others of their batch, which accumulation would divide; lower train.batch_size instead"
            )
        self.tokenizer = run_tokenizer(run, settings.model, data.train, settings.seed)
        self.fingerprints = dataset_fingerprint(data.train) | {"tokenizer": tokenizer_digest(self.tokenizer)}
        if data.mixture is not None:
            self.fingerprints["mixture"] = data.mixture.fingerprint
        torch.manual_seed(derive_seed(settings.seed, 1))
        shape = data.train.resolution, data.train.channels
        self.model = build_clip(settings.model, *shape, self.tokenizer, sizes_of(data.train))
        if not torch.cuda.is_available():  # torch's fused attention has a backward five times slower in bf16 on CPU
            self.model.set_attn_implementation("eager")
        self.module = ClipObjective(self.model)
        self.swaps = caption_swaps(data.train, settings.seed) if settings.loss.hard_negatives else None
        self.num_samples = len(data.train)
        self.weights: np.ndarray | None = None
        self.buckets, self.order = buckets_of(data.train), epoch_order(data.train)

    def __getstate__(self) -> dict:
        """What `batch` needs, for the data loader's workers."""
        return {name: value for name, value in self.__dict__.items() if name not in ("model", "module")}

    def batch(self, samples: list[SampleRef], rows: BatchSlice) -> dict[str, Tensor]:
        items = [(self.data.train, sample) for sample in samples]
        if (mixture := self.data.mixture) is not None:
            share = self.settings.data.mixture.contrastive
            synthetic = from_mixture(mixture, rows, share, self.settings.seed)
            items = [(mixture, synthetic[j]) if j in synthetic else item for j, item in enumerate(items)]
        images = to_images(np.stack([data.image(sample.index) for data, sample in items]))
        captions = captions_of(items, self.settings.seed)
        batch = {"images": images, "input_ids": encode(self.tokenizer, captions)}
        if self.swaps is not None:
            batch["negative_ids"] = encode(self.tokenizer, self._wrong(self.swaps, captions, rows))
        return batch

    def _wrong(self, swaps: CaptionSwaps, captions: list[str], rows: BatchSlice) -> list[str]:
        """Variants of each caption, by (seed, step, position in the global batch)."""
        seeds = ([self.settings.seed, 10, rows.step, j] for j in range(rows.start, rows.stop))
        pairs = zip(captions, map(np.random.default_rng, seeds), strict=True)
        return [swaps(caption, rng) for caption, rng in pairs for _ in range(self.settings.loss.hard_negatives)]

    def report(self, folder: Path, label: str) -> dict[str, float]:
        return self.recalls()

    @torch.no_grad()
    def recalls(self) -> dict[str, float]:
        """Retrieval among `RETRIEVED` validation pairs at most, each with one fixed caption."""
        data, device = self.data.validation, self.model.device
        images, texts = [], []
        chosen = evenly_spaced_indices(len(data), RETRIEVED)
        for indices in of_one_size(data, chosen, 64):
            pixels = to_images(np.stack([data.image(i) for i in indices]))
            captions = captions_of([(data, SampleRef(i, 0)) for i in indices], self.settings.seed)
            pair = self.module.features(pixels.to(device), encode(self.tokenizer, captions).to(device))
            images.append(pair[0].cpu())
            texts.append(pair[1].cpu())
        return recall_at(torch.cat(images), torch.cat(texts))

    def has_validation(self) -> bool:
        return apart(self.data.train, self.data.validation)

    def validate(self) -> dict[str, float]:
        """One minus the mean recall: the contrastive loss rises as the temperature falls, though no order changes."""
        recalls, pairs = self.recalls().values(), min(RETRIEVED, len(self.data.validation))
        loss = 1 - sum(recalls) / len(recalls)
        return {"loss": loss, "error": math.sqrt(loss * (1 - loss) / pairs)}

    def finish(self, folder: Path) -> None:
        """`clip` (both towers), `text_encoder` (the text tower alone) and `tokenizer`, as transformers saves them."""
        save_component(self.model, folder / "clip")
        save_component(text_tower(self.model), folder / "text_encoder")
        save_tokenizer(self.tokenizer, folder / "tokenizer")
