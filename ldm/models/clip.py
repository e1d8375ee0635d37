"""CLIP: a text and an image encoder trained contrastively on image-caption pairs.

Loss: InfoNCE over the global batch, symmetric (Radford et al. 2021, arXiv 2103.00020, fig. 3).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

from ldm.config.settings import ClipModel
from ldm.models.text_encoder import text_config
from ldm.models.tokenizer import Vocabulary
from ldm.utils.errors import UserError


def build_clip(model: ClipModel, resolution: int, channels: int, tokenizer: Vocabulary) -> CLIPModel:
    """Both towers, randomly initialized. Raises: UserError if the patches do not tile the image."""
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


def gather(local: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The rows of all processes, (world * b, ...); gradients flow back to each process's own."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return local
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(local))


def contrastive_loss(
    image: Float[Tensor, "b D"], text: Float[Tensor, "b D"], scale: Float[Tensor, ""], input_ids: Int64[Tensor, "b L"]
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE of unit features, in nats; `scale` = 1 / temperature.

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

    def features(
        self, images: Float[Tensor, "b C H W"], input_ids: Int64[Tensor, "b L"]
    ) -> tuple[Float[Tensor, "b D"], Float[Tensor, "b D"]]:
        """Unit features of images in [-1, 1] and of captions, float32."""
        vision = self.clip.vision_model(pixel_values=images).pooler_output
        text = self.clip.text_model(input_ids=input_ids).pooler_output
        return (
            F.normalize(self.clip.visual_projection(vision).float(), dim=-1),
            F.normalize(self.clip.text_projection(text).float(), dim=-1),
        )

    def forward(
        self, images: Float[Tensor, "b C H W"], input_ids: Int64[Tensor, "b L"], progress: float
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        image, text = self.features(images, input_ids)
        scale = self.clip.logit_scale.exp().clamp(max=100)
        loss = contrastive_loss(gather(image), gather(text), scale, gather(input_ids))
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
