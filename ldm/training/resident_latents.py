"""Cached latents in the memory of the training's device: a batch brings row numbers, and nothing is read from disk."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.training.latent_cache import Latents
from ldm.utils.errors import UserError

FRACTION = 0.25  # of the memory that is free, which they may take where nothing is said
ROWS = 2**16  # copied at a time


class ResidentLatents:
    """Means and deviations of the latents of several data sets, one after the other, in float16 on a device."""

    def __init__(self, sets: Sequence[Latents], device: torch.device):
        self.mean, self.std = (_copied([getattr(one, name) for one in sets], device) for name in ("mean", "std"))

    def draw(self, rows: Tensor, noise: Tensor) -> Tensor:
        """As `Latents.sample`, to the last bit. rows: int64 (B,) on the device."""
        return self.mean.index_select(0, rows).float() + self.std.index_select(0, rows).float() * noise


def resident(sets: Sequence[object], device: torch.device, wanted: bool | None) -> ResidentLatents | None:
    """Latents on the device, as `wanted`, or where that is None, on a GPU with room for them; None = not there.

    Raises: UserError where they are wanted and cannot be.
    """
    if wanted is False or (wanted is None and device.type != "cuda"):
        return None
    cached = [one for one in sets if isinstance(one, Latents)]
    if len(cached) < len(sets):
        if wanted:
            raise UserError("latents_on_device: true needs cached latents of one size: leave it out")
        return None
    size = sum(one.mean.nbytes + one.std.nbytes for one in cached)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else size
    if wanted and size > free:
        raise UserError(
            f"latents_on_device: true needs {size / 2**30:.1f} GiB on {device} and {free / 2**30:.1f} GiB are free: "
            "leave it out"
        )
    return ResidentLatents(cached, device) if wanted or size <= FRACTION * free else None


def _copied(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """One array after the other on the device, a few rows at a time: files are not read into memory as a whole."""
    copies = [
        torch.from_numpy(np.array(array[first : first + ROWS])).to(device)
        for array in arrays
        for first in range(0, len(array), ROWS)
    ]
    return copies[0] if len(copies) == 1 else torch.cat(copies)
