"""The latent cache: each image is encoded once, and training reads the posterior's mean and std from a memory map.

Content-addressed: the folder's name is a digest of the autoencoder's weights and of the pixels, so a changed VAE, data
set or resolution can never meet stale latents. Mean and std are kept rather than a sample, so each epoch draws anew.
Written in a staged folder with a manifest of sha256 sums; a damaged or half-written cache is rebuilt.
"""

import hashlib
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm import checkpoint
from ldm.autoencoder import Autoencoder, factor_of, image_batches, posterior
from ldm.data import ImageTextData
from ldm.errors import UserError

# Settings of a VAE or a text encoder that no weight shows, as their classes name them.
DECIDING = (
    "act_fn",
    "hidden_act",
    "layer_norm_eps",
    "norm_num_groups",
    "num_attention_heads",
    "scaling_factor",
    "shift_factor",
)
CACHED_BYTES = 2**23  # of one feature map at full resolution, where encoding on a CPU is fastest


@dataclass(frozen=True)
class Latents:
    """Posterior means and standard deviations, float16 arrays (N, c, h, w), mapped from disk."""

    mean: np.ndarray
    std: np.ndarray

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, c, h, w)"""
        return self.mean.shape

    def sample(self, indices: list[int], noise: Tensor) -> Tensor:
        """mean + std * noise of these items: float32 (B, c, h, w) for standard normal noise of that shape."""
        mean, std = (torch.from_numpy(array[indices].astype(np.float32)) for array in (self.mean, self.std))
        return mean + std * noise


def weights_digest(module: torch.nn.Module) -> str:
    """sha256 over names, shapes and values of a module's parameters and buffers, as hex."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def network_digest(module: torch.nn.Module) -> str:
    """As `weights_digest`, and over the settings with which the same weights compute something else."""
    config = getattr(module, "config", None)
    settings = {name: getattr(config, name) for name in DECIDING if hasattr(config, name)}
    return hashlib.sha256(f"{weights_digest(module)} {settings}".encode()).hexdigest()


def latents_folder(vae: Autoencoder, data: ImageTextData, cache_dir: Path) -> Path:
    """Where the latents of just these pixels by just these weights lie."""
    key = hashlib.sha256(f"latents 2 {network_digest(vae)} {data.fingerprint}".encode()).hexdigest()[:24]
    return cache_dir / "latents" / key


def pictures_at_once(vae: Autoencoder, resolution: int) -> int:
    """How many pictures to encode together: 64, but on a CPU what its caches hold, which is 1.3 times as fast."""
    if vae.device.type != "cpu":
        return 64
    return max(1, CACHED_BYTES // (4 * resolution**2 * vae.config.block_out_channels[0]))


def cached_latents(vae: Autoencoder, data: ImageTextData, cache_dir: Path, batch_size: int | None = None) -> Latents:
    """The latents of a data set, encoded now unless a whole cache of just these pixels and weights exists.

    Args:
        batch_size: pictures encoded together; None = what suits the device.
    Raises: UserError if the VAE takes other images than these.
    """
    if vae.config.in_channels != data.channels:
        raise UserError(
            f"the VAE takes {vae.config.in_channels}-channel images and the data has {data.channels}: "
            "set data.channels to match, or train a VAE on this data"
        )
    if data.resolution % factor_of(vae):
        raise UserError(f"data.resolution {data.resolution} is no multiple of the VAE's factor {factor_of(vae)}")
    folder = latents_folder(vae, data, cache_dir)
    fault = checkpoint.verify(folder)
    if fault and folder.exists():
        print(f"latent cache {folder} cannot be used ({fault}); building it anew", flush=True)
        shutil.rmtree(folder)
    if fault:
        _build(vae, data, folder, batch_size or pictures_at_once(vae, data.resolution))
    return Latents(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("mean", "std")))


@torch.no_grad()
def _build(vae: Autoencoder, data: ImageTextData, folder: Path, batch_size: int) -> None:
    side = data.resolution // factor_of(vae)
    header = {"descr": "<f2", "fortran_order": False, "shape": (len(data), vae.config.latent_channels, side, side)}
    with checkpoint.staged(folder) as stage, ExitStack() as open_files:
        files = [open_files.enter_context(open(stage / f"{name}.npy", "wb")) for name in ("mean", "std")]
        for file in files:  # written front to back, so that a full disk is an error and not a crash of the memory map
            np.lib.format.write_array_header_1_0(file, header)
        for images in tqdm(image_batches(data, batch_size), "encoding", -(-len(data) // batch_size), unit="batch"):
            encoded = posterior(vae, images.to(vae.device, vae.dtype))
            for file, values in zip(files, (encoded.mean, encoded.std)):
                array = values.float().cpu().numpy().astype("<f2")
                if not np.isfinite(array).all():
                    raise UserError("the VAE gives latents that are not finite numbers; train it in fp32 or bf16")
                file.write(array.tobytes())
