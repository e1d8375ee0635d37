"""CLIP: a text and an image encoder trained contrastively on image-caption pairs.

Loss: InfoNCE over the global batch, symmetric (Radford et al. 2021, arXiv 2103.00020, fig. 3), with further wrong texts
for every image if there are any (Yuksekgonul et al. 2023, arXiv 2210.01936, section 4).
"""

import math
import warnings
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ldm.config.settings import ClipModel
from ldm.models.text_encoder import text_config
from ldm.models.tokenizer import Vocabulary
from ldm.utils.errors import UserError
from ldm.utils.image_sizes import Size, resolution_of, size_of
from ldm.utils.image_tensors import premultiplied


def build_clip(
    model: ClipModel,
    resolution: int | Size,
    channels: int,
    tokenizer: CLIPTokenizer | Vocabulary,
    sizes: Iterable[Size] = (),
) -> CLIPModel:
    """Both towers, randomly initialized, for images of this side or (height, width), and of `sizes`.

    Raises: UserError if the patches do not tile the images.
    """
    for size in (size_of(resolution), *sizes):
        if any(side % model.patch_size for side in size):
            raise UserError(
                f"data.resolution {resolution_of(size)} must be a multiple of model.patch_size {model.patch_size}"
            )
    vision = CLIPVisionConfig(
        hidden_size=model.vision_width,
        intermediate_size=4 * model.vision_width,
        num_hidden_layers=model.vision_layers,
        num_attention_heads=model.vision_heads,
        image_size=position_side(resolution, model.patch_size),
        patch_size=model.patch_size,
        num_channels=channels,
        projection_dim=model.embed_dim,
    )
    text = text_config(model, tokenizer)
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=model.embed_dim)
    )


def position_side(resolution: int | Size, patch_size: int) -> int:
    """Side in pixels of the square that position embeddings are of: as many pixels, a multiple of `patch_size`."""
    return max(1, round(math.sqrt(math.prod(size_of(resolution))) / patch_size)) * patch_size


def encode_images(tower: nn.Module, images: Float[Tensor, "b C H W"]) -> BaseModelOutputWithPooling:
    """What the vision part of a CLIPModel gives for images in [-1, 1].

    For images of another size than that of its position embeddings, these are interpolated.
    """
    other = any(side != tower.config.image_size for side in images.shape[2:])
    return tower(pixel_values=images, interpolate_pos_encoding=other)


def gather(local: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The rows of all processes, (world * b, ...); gradients flow back to each process's own."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return local
    from torch.distributed.nn.functional import all_gather

    with warnings.catch_warnings():  # torch 2.13 has a successor, which torch 2.10 lacks
        warnings.simplefilter("ignore", FutureWarning)
        rows = all_gather(local)
    return torch.cat(rows)


NEVER = -1e4  # a logit beside which exp(100) is everything, and 0 times its logarithm is 0


def contrastive_loss(
    image: Float[Tensor, "b D"],
    text: Float[Tensor, "b D"],
    scale: Float[Tensor, ""],
    input_ids: Int64[Tensor, "b L"],
    negatives: tuple[Float[Tensor, "n D"], Int64[Tensor, "n L"]] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE of unit features, in nats; `scale` = 1 / temperature.

    `negatives`: features and tokens of n texts that are no image's own; every image is to be told from them as well,
    (b, b + n) logits, while texts are told from images as without them. One that is equal to an image's own caption
    does not count for that image.

    Pairs with the same caption are equally right for each other's image ('horizontal stacked glyph' fits most glyphs),
    as in Yang et al. 2022, arXiv 2204.03610, eq. 3 and 4; with all captions different it is CLIP's loss.
    """
    # Logits reach 100, where bf16 has steps of a half.
    with torch.autocast("cuda" if image.is_cuda else "cpu", enabled=False):
        logits = scale * image @ text.T
        same = (input_ids.unsqueeze(0) == input_ids.unsqueeze(1)).all(-1).to(logits)
        target = same / same.sum(1, keepdim=True)
        of_text = F.cross_entropy(logits.T, target)
        if negatives is not None:
            features, ids = negatives
            equal = (input_ids.unsqueeze(1) == ids.unsqueeze(0)).all(-1)
            logits = torch.cat([logits, (scale * image @ features.T).masked_fill(equal, NEVER)], 1)
            target = F.pad(target, (0, len(ids)))
        return (F.cross_entropy(logits, target) + of_text) / 2


class ClipObjective(nn.Module):
    """Both towers and their loss: forward gives the InfoNCE over the batch of all processes."""

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip

    def features(
        self, images: Float[Tensor, "b C H W"], input_ids: Int64[Tensor, "n L"]
    ) -> tuple[Float[Tensor, "b D"], Float[Tensor, "n D"]]:
        """Unit features of images in [-1, 1] and of captions, float32."""
        vision = encode_images(self.clip.vision_model, premultiplied(images)).pooler_output
        text = self.clip.text_model(input_ids=input_ids).pooler_output
        return (
            F.normalize(self.clip.visual_projection(vision).float(), dim=-1),
            F.normalize(self.clip.text_projection(text).float(), dim=-1),
        )

    def forward(
        self,
        images: Float[Tensor, "b C H W"],
        input_ids: Int64[Tensor, "b L"],
        progress: float,
        negative_ids: Int64[Tensor, "n L"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """`negative_ids`: tokens of further texts that fit no image; see `contrastive_loss`."""
        scale = self.clip.logit_scale.exp().clamp(max=100)
        if negative_ids is None:
            image, text = self.features(images, input_ids)
            negatives = None
        else:
            image, every = self.features(images, torch.cat([input_ids, negative_ids]))
            text, wrong = every.split([len(input_ids), len(negative_ids)])
            negatives = gather(wrong), gather(negative_ids)
        loss = contrastive_loss(gather(image), gather(text), scale, gather(input_ids), negatives)
        return loss, {"temperature": 1 / scale}


def recall_at(
    image: Float[Tensor, "n D"], text: Float[Tensor, "n D"], ks: tuple[int, ...] = (1, 5, 10)
) -> dict[str, float]:
    """The fraction of texts whose own image is among the k nearest of all, and of images likewise; unit features.

    Ties are counted as half: a constant feature scores what chance would.
    """
    similarity = text @ image.T
    numbers: dict[str, float] = {}
    for name, matrix in (("text_to_image", similarity), ("image_to_text", similarity.T)):
        own = matrix.diagonal().unsqueeze(1)
        rank = (matrix > own).sum(1) + ((matrix == own).sum(1) - 1) / 2
        numbers |= {f"{name}_recall@{k}": (rank < k).float().mean().item() for k in ks}
    return numbers
