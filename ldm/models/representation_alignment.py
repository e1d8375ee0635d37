"""Representation alignment: early in training the U-Net's middle block is aligned with an image encoder.

A small network at each position of the middle block's output, scaled up to the encoder's grid of patches, learns to
agree with the encoder's last features of the clean image; the U-Net gets this gradient too. Sources: Yu et al. 2024,
arXiv 2410.06940 (REPA); Tian et al. 2025, arXiv 2503.18414 (U-REPA: the middle of a U-Net, scaled up after the
network); Wang et al. 2025, arXiv 2505.16792 (stopping early).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel

from ldm.models.clip import encode_images, position_side
from ldm.models.unet import inner_unet
from ldm.utils.errors import UserError
from ldm.utils.image_sizes import Size
from ldm.utils.image_tensors import premultiplied
from ldm.utils.untrusted_files import validated


class Alignment(nn.Module):
    """The frozen image encoder and the network that is compared with it; of no use after the training."""

    def __init__(self, tower: nn.Module, unet: nn.Module, weight: float, hidden: int = 256):
        """`tower`: the vision part of a CLIPModel. `unet`: has a `mid_block`, whose output is compared."""
        super().__init__()
        inner = inner_unet(unet)
        if inner.mid_block is None:
            raise UserError("alignment.weight needs denoiser: unet with model.mid_block: true")
        self.tower, self.weight = tower.eval().requires_grad_(False), weight
        channels, width = inner.config.block_out_channels[-1], tower.config.hidden_size
        self.network = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, width, 1))
        self._middle: Tensor | None = None
        inner.mid_block.register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, given: tuple, middle: Tensor) -> None:
        self._middle = middle if self.training else None

    def forward(self, images: Float[Tensor, "b C H W"]) -> Float[Tensor, " b"]:
        """1 - cosine similarity, mean over positions, in [0, 2], for the U-Net's latest pass in training.

        `images`: clean, of the same items, in [-1, 1].
        """
        assert self._middle is not None, "the U-Net is called first"
        with torch.no_grad():
            patches = encode_images(self.tower, premultiplied(images)).last_hidden_state[:, 1:]  # 0 is the class token
        grid = [side // self.tower.config.patch_size for side in images.shape[2:]]
        projected = F.interpolate(self.network(self._middle), size=grid, mode="bilinear").flatten(2).transpose(1, 2)
        return 1 - F.cosine_similarity(projected.float(), patches.float(), dim=-1).mean(1)


def load_tower(run: Path, resolution: int | Size, channels: int) -> nn.Module:
    """The image encoder of a finished CLIP run, for images of this size. Raises: UserError if there is none."""
    folder = next((path for path in (run / "final" / "clip", run / "clip", run) if _is_clip(path)), None)
    if folder is None:
        raise UserError(
            f"alignment.source: no finished CLIP run in {run}: run `ldm train clip` first, or name its folder"
        )
    tower = CLIPModel.from_pretrained(validated(folder), use_safetensors=True, dtype=torch.float32).vision_model
    takes = tower.config.num_channels, tower.config.image_size
    if takes != (channels, position_side(resolution, tower.config.patch_size)):
        raise UserError(f"{folder} sees images of {takes[0]} x {takes[1]}, and the data have {channels} x {resolution}")
    return tower


def _is_clip(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and '"vision_config"' in config.read_text(encoding="utf-8")
