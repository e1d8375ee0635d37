"""The weak model of autoguidance: an earlier checkpoint of a run, another run, an export, or a bare denoiser.

Leading away from a worse model of the same thing removes what both do wrong, and needs no null caption: it works for
unconditional models too (Karras et al. 2024, arXiv 2406.02507). A run keeps its last `train.keep_checkpoints`.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.pipelines.networks import NETWORKS
from ldm.pipelines.pipeline import Pipeline
from ldm.utils import checkpoint_files as checkpoint
from ldm.utils import sharded_files
from ldm.utils.errors import UserError

Load = Callable[..., Pipeline]  # `load_pipeline`, which imports this module


def load_weak(path: str | Path, main: Pipeline, load: Load) -> Pipeline:
    """Load a weak model for `main`.

    Args:
        path: an exported folder, a finished run, a Hub id, or a checkpoint such as
            runs/<name>/ldm/checkpoints/step-00000500, of which the averaged (EMA) weights are taken.

    Raises: UserError if there is no such model, or its autoencoder is another one.
    """
    folder = Path(path).expanduser()
    whole = (folder / "model.safetensors").is_file()
    if not (folder / checkpoint.MANIFEST).is_file() or not (whole or sharded_files.is_sharded(folder)):
        weak = load(path, device=main.device, dtype=main.dtype)
    else:
        weak = _from_checkpoint(folder, main, load)
    ours, theirs = (each.networks.module("vae").state_dict() for each in (main, weak))
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        raise UserError(f"{path} has another autoencoder than the main model, so its latents mean something else")
    return weak


def _from_checkpoint(folder: Path, main: Pipeline, load: Load) -> Pipeline:
    """The run's pipeline as it was then; of an unfinished run it is the main one with that run's weights."""
    if fault := checkpoint.verify(folder):
        raise UserError(f"checkpoint {folder} cannot be used: {fault}")
    tensors = _weights(folder)
    run = folder.resolve().parents[1]
    if (run / "final" / "unet").is_dir():
        weak = load(run, device=main.device, dtype=main.dtype)
    else:
        networks = {name: copy.deepcopy(main.networks.module(name)) for name in NETWORKS}
        weak = Pipeline(**networks, tokenizer=main.tokenizer, scheduler=main.scheduler, defaults=main.defaults)
    if not _fill(weak.unet, "unet", tensors):
        raise UserError(f"checkpoint {folder} is of another denoiser than the one it should fill")
    _fill(weak.text_encoder, "text_encoder", tensors)  # it is there where it was trained along
    return weak


def _weights(folder: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, or those in training where none were averaged."""
    if sharded_files.is_sharded(folder):
        groups = sharded_files.read_whole(folder)
        return groups.get("ema") or groups["model"]
    averaged = folder / "ema.safetensors"
    return load_file(averaged if averaged.is_file() else folder / "model.safetensors")


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
