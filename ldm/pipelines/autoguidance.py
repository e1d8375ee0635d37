"""The weak model of autoguidance: an earlier checkpoint of a run, another run, an export, or a bare denoiser.

Leading away from a worse model of the same thing removes what both do wrong, and needs no null caption: it works for
unconditional models too (Karras et al. 2024, arXiv 2406.02507). A run keeps its last `train.keep_checkpoints`.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.pipelines.stock_noise import process_of
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from ldm.pipelines.pipeline import Pipeline


def as_weak(weak: "Pipeline | nn.Module | str | Path", main: "Pipeline") -> "Pipeline":
    """The weak model as a pipeline of its own, on the main one's device, once the two are known to speak of the same.

    Args:
        weak: a pipeline; a denoiser with the main one's text encoder; or a path or Hub id, see `load_weak`.

    Raises: ValueError if the latents or the noise process differ; UserError for a path that leads nowhere.
    """
    if isinstance(weak, str | Path):
        weak = load_weak(weak, main)
    elif isinstance(weak, nn.Module):
        network, weak = weak, copy.copy(main)
        weak.unet = network.eval()
    if weak.latent_shape != main.latent_shape:
        raise ValueError(f"the weak model has latents {weak.latent_shape}, the main one {main.latent_shape}: no match")
    ours, theirs = process_of(main.scheduler), process_of(weak.scheduler)
    times = torch.linspace(0.05, 0.95, 10)
    same = torch.allclose(ours.schedule.logsnr(times), theirs.schedule.logsnr(times), atol=1e-3)
    if ours.prediction_type != theirs.prediction_type or not same:
        raise ValueError(
            f"the weak model must have the main one's noise process: {ours.prediction_type} on "
            f"{type(ours.schedule).__name__} here, {theirs.prediction_type} on {type(theirs.schedule).__name__} there"
        )
    return weak


def load_weak(path: str | Path, main: "Pipeline") -> "Pipeline":
    """Load a weak model for `main`.

    Args:
        path: an exported folder, a finished run, a Hub id, or a checkpoint such as
            runs/<name>/ldm/checkpoints/step-00000500, of which the averaged (EMA) weights are taken.

    Raises: UserError if there is no such model, or its autoencoder is another one.
    """
    from ldm.pipelines.loading import load_pipeline

    folder = Path(path).expanduser()
    if not (folder / checkpoint.MANIFEST).is_file() or not (folder / "model.safetensors").is_file():
        weak = load_pipeline(path, device=main.device, dtype=main.dtype)
    else:
        weak = _from_checkpoint(folder, main)
    ours, theirs = main.vae.state_dict(), weak.vae.state_dict()
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        raise UserError(f"{path} has another autoencoder than the main model, so its latents mean something else")
    return weak


def _from_checkpoint(folder: Path, main: "Pipeline") -> "Pipeline":
    """The run's pipeline as it was then; of an unfinished run it is the main one with that run's weights."""
    from ldm.pipelines.loading import load_pipeline

    if fault := checkpoint.verify(folder):
        raise UserError(f"checkpoint {folder} cannot be used: {fault}")
    averaged = folder / "ema.safetensors"
    tensors = load_file(averaged if averaged.is_file() else folder / "model.safetensors")
    run = folder.resolve().parents[1]
    if (run / "final" / "unet").is_dir():
        weak = load_pipeline(run, device=main.device, dtype=main.dtype)
    else:
        weak = copy.copy(main)
        weak.unet, weak.text_encoder = copy.deepcopy(main.unet), copy.deepcopy(main.text_encoder)
    if not _fill(weak.unet, "unet", tensors):
        raise UserError(f"checkpoint {folder} is of another denoiser than the one it should fill")
    _fill(weak.text_encoder, "text_encoder", tensors)  # it is there where it was trained along
    return weak


@torch.no_grad()
def _fill(network: nn.Module, name: str, tensors: dict[str, Tensor]) -> bool:
    """Set the network's parameters from those called so, or `name.` so; whether all of them were there."""
    own = dict(network.named_parameters())
    for prefix in (f"{name}.", ""):
        found = {key: tensors.get(prefix + key) for key in own}
        if all(value is not None and value.shape == own[key].shape for key, value in found.items()):
            for key, value in found.items():
                own[key].copy_(value)
            return True
    return False
