"""Networks to compare images by: the CLIP that a run was trained with, or a vision model of transformers.

CLIP was trained on the same captions as the generator, which can therefore reach a high CLIP score without better
images: the score is no substitute for the other measures. Networks trained on photographs know nothing of glyphs, but
distances on their features are what others report; give a folder with DINOv2, say, and they are measured as well.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldm.formats.image_arrays import fit_image
from ldm.utils.errors import UserError
from ldm.utils.image_tensors import premultiplied
from ldm.utils.transparency import on_grounds
from ldm.utils.untrusted_files import read_json, validated

SIZE = 224  # of the images that a vision model takes, where its settings do not say
COARSE = 8  # side of the images that are compared where there is no network
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet: likewise


@dataclass(frozen=True)
class FeatureExtractor:
    """By what images are compared. `embed`: uint8 (n, h, w) or (n, h, w, c) -> float (n, d).

    Images with alpha, c = 4, are seen on black and on white, and the features of both are concatenated; an encoder
    that takes alpha sees them as they are.
    """

    name: str
    digest: str
    embed: Callable[[np.ndarray], np.ndarray]


class ClipEmbedder:
    """Both encoders of a finished run of `ldm train clip`. Raises: UserError: `run` is none."""

    def __init__(self, run: Path):
        from transformers import CLIPModel, CLIPTokenizer

        folder = next((each for each in (run / "final", run) if (each / "clip" / "config.json").is_file()), None)
        if folder is None:
            raise UserError(f"{run} holds no clip/: name a finished run of `ldm train clip`, such as runs/glyphs/clip")
        try:
            path = validated(folder / "clip")
            self.clip = CLIPModel.from_pretrained(path, use_safetensors=True, local_files_only=True).eval()
            self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        except Exception as error:  # the library has many exceptions for a broken file
            raise UserError(f"the CLIP in {folder} cannot be read: {str(error).splitlines()[0]}") from error
        self.digest = digest(folder / "clip")

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Unit features (n, d) of images uint8 (n, h, w) or (n, h, w, c), and of as many prompts."""
        from ldm.models.clip import ClipObjective
        from ldm.models.tokenizer import encode

        both = ClipObjective(self.clip)
        features = []
        for start in range(0, len(images), 64):
            batch = slice(start, start + 64)
            tokens = encode(self.tokenizer, prompts[batch])
            grounds = [both.features(self._pixels(part), tokens) for part in self._seen(images[batch])]
            image = F.normalize(sum(image for image, _ in grounds), dim=-1) if len(grounds) > 1 else grounds[0][0]
            features.append((image, grounds[0][1]))
        return torch.cat([image for image, _ in features]), torch.cat([text for _, text in features])

    @torch.no_grad()
    def embed(self, images: np.ndarray) -> np.ndarray:
        """Features of images alone, float32 (n, d), each of length sqrt(d): KID's kernel is then (cosine + 1)^3."""
        return np.concatenate([self._embed(part) for part in self._seen(images)], axis=1)

    def _embed(self, images: np.ndarray) -> np.ndarray:
        from ldm.models.clip import encode_images

        batches = []
        for start in range(0, len(images), 64):
            pixels = premultiplied(self._pixels(images[start : start + 64]))
            pooled = encode_images(self.clip.vision_model, pixels).pooler_output
            batches.append(F.normalize(self.clip.visual_projection(pooled).float(), dim=-1))
        features = torch.cat(batches)
        return (features * features.shape[1] ** 0.5).numpy()

    def _seen(self, images: np.ndarray) -> list[np.ndarray]:
        """Images with alpha on both grounds, unless the encoder takes alpha; others as they are."""
        return [images] if self.clip.config.vision_config.num_channels == 4 else on_grounds(images)

    def _pixels(self, images: np.ndarray) -> Tensor:
        """(n, channels, h, w) in [-1, 1] of as many pixels as the image encoder was trained on, in whole patches."""
        config = self.clip.config.vision_config
        if images.shape[3:] == (4,) and images.shape[1] != config.image_size:  # hidden colours would bleed into edges
            images = np.stack([fit_image(each, config.image_size, "stretch") for each in images])
        x = torch.from_numpy(images.reshape(*images.shape[:3], -1)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if config.num_channels == 4 and x.shape[1] < 4:  # opaque
            x = torch.cat([x.expand(-1, 3, -1, -1), torch.ones_like(x[:, :1])], dim=1)
        x = x.mean(1, keepdim=True) if config.num_channels == 1 else x.expand(-1, config.num_channels, -1, -1)
        stretch, patch = (images.shape[1] / images.shape[2]) ** 0.5, config.patch_size
        size = tuple(max(1, round(config.image_size * by / patch)) * patch for by in (stretch, 1 / stretch))
        return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True)


class VisionModel:
    """A vision model of transformers, such as DINOv2.

    Args:
        source: folder with config.json and safetensors weights, or a Hub id if there is a network.
    Raises: UserError: it cannot be loaded.
    """

    def __init__(self, source: str):
        from transformers import AutoModel

        if (Path(source) / "config.json").is_file():
            validated(Path(source))
        try:
            model = AutoModel.from_pretrained(source, use_safetensors=True, trust_remote_code=False).eval()
        except Exception as error:  # a library of many exceptions
            raise UserError(f"no vision model in {source}: {str(error).splitlines()[0]}") from error
        self.model = getattr(model, "vision_model", model)  # of a CLIP, the image encoder
        if not hasattr(self.model.config, "num_channels"):
            raise UserError(f"{source} is a {type(model).__name__}, which takes no images: name a vision model")
        file = Path(source) / "preprocessor_config.json"
        settings = read_json(file) if file.is_file() else {}
        self.mean, self.deviation = (
            torch.tensor(settings.get(name, default))[:, None, None]
            for name, default in (("image_mean", MEAN), ("image_std", DEVIATION))
        )
        size: Any = settings.get("crop_size", settings.get("size", SIZE))
        size = size.get("height", size.get("shortest_edge", SIZE)) if isinstance(size, dict) else size
        self.size = int(size)
        self.digest = digest(Path(source)) if Path(source).is_dir() else source

    @property
    def extractor(self) -> FeatureExtractor:
        return FeatureExtractor(type(self.model).__name__, self.digest, self.embed)

    @torch.no_grad()
    def embed(self, images: np.ndarray) -> np.ndarray:
        """float32 (n, d) of images uint8 (n, h, w[, c]): the pooled output, or the mean of the last hidden state."""
        return np.concatenate([self._embed(part) for part in on_grounds(images)], axis=1)

    def _embed(self, images: np.ndarray) -> np.ndarray:
        batches = []
        for start in range(0, len(images), 32):
            small = [
                Image.fromarray(each.squeeze()).resize((self.size, self.size), Image.Resampling.BICUBIC).convert("RGB")
                for each in images[start : start + 32]
            ]
            x = torch.from_numpy(np.stack([np.asarray(each) for each in small])).permute(0, 3, 1, 2) / 255
            output = self.model(pixel_values=(x - self.mean) / self.deviation)
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                hidden = output.last_hidden_state
                pooled = hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))
            batches.append(pooled.flatten(1))
        return torch.cat(batches).float().numpy()


def coarse_colours(images: np.ndarray) -> np.ndarray:
    """uint8 (n, h, w, c) -> the mean colour of each of 8 x 8 cells, float32 in [-1, 1], (n, 64 c or 384)."""
    if len(grounds := on_grounds(images)) > 1:
        return np.concatenate([coarse_colours(part) for part in grounds], axis=1)
    size = (COARSE, COARSE)
    small = [Image.fromarray(x.squeeze()).resize(size, Image.Resampling.BOX) for x in images]
    return np.stack([np.asarray(x, np.float32).ravel() / 127.5 - 1 for x in small])


def digest(folder: Path) -> str:
    """The first 16 digits of the sha256 of all weights in a folder."""
    total = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        total.update(file.read_bytes())
    return total.hexdigest()[:16]
