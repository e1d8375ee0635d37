"""LoRA: low-rank adapters for the weights of a finished model, W + scale B A, in one file that diffusers reads too.

Layers keep the names they have in the model: `unet.<layer>.lora_A.weight` and `unet.<layer>.lora_B.weight`, likewise
`text_encoder.<layer>`. Files written here have alpha / rank already in B, so a reader needs no third number.
Source: Hu et al. 2021, arXiv 2106.09685, eq. 3; the names are those of diffusers and peft.
"""

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsFloat

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.config.settings import StartOptions
from ldm.models.lora_formats import parse_key, refuse_other, scale_of
from ldm.utils.errors import UserError

FILE = "pytorch_lora_weights.safetensors"
SETTINGS = "lora_adapter_metadata"  # where diffusers keeps those of peft, as JSON
PEFT_FILE, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"  # of peft's own save_pretrained
NETWORK_SETTINGS = ("lora_alpha", "alpha_pattern", "use_rslora")


@dataclass(frozen=True)
class Adapter:
    """The update of one layer's weight, in float32.

    Attributes: down (A): (rank, in) or (rank, in, height, width); up (B): (out, rank) or (out, rank, 1, 1); scale: what
    B A is multiplied by, alpha / rank; magnitude: the norms (out,) that the rows of the weight get (DoRA, Liu et al.
    2024, arXiv 2402.09353, eq. 5), or None.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    magnitude: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it belongs to; () for a pair that cannot be multiplied."""
        fits = self.down.ndim in (2, 4) and self.up.ndim == self.down.ndim
        if not fits or self.up.shape[1] != len(self.down) or self.up[0, 0].numel() != 1:
            return ()
        return (len(self.up), *self.down.shape[1:])

    def delta(self) -> Tensor:
        """scale B A, in the weight's shape."""
        return self.scale * (self.up.flatten(1) @ self.down.flatten(1)).reshape(self.shape)

    def added_to(self, weight: Tensor, scale: float) -> Tensor:
        """The weight with `scale` times the update, float32."""
        merged = weight.float() + scale * self.delta().to(weight.device)
        if self.magnitude is None:
            return merged
        each = (-1, *[1] * (merged.ndim - 1))
        return merged * (self.magnitude.to(weight.device) / merged.flatten(1).norm(dim=1)).view(each)


def save_lora(adapters: Mapping[str, Adapter], folder: Path) -> Path:
    """Write `folder`/pytorch_lora_weights.safetensors; `adapters` as `read_lora` returns them."""
    tensors = {}
    for name, adapter in adapters.items():
        part, _, layer = name.partition(".")
        key = f"{part}.text_model.{layer}" if part == "text_encoder" else name  # as every version of diffusers reads it
        tensors[f"{key}.lora_A.weight"] = adapter.down.contiguous()
        tensors[f"{key}.lora_B.weight"] = (adapter.up * adapter.scale).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    return folder / FILE


def find_lora(path: str | Path) -> Path:
    """The file that `path` means: itself, or the one in a folder or in the final/lora of a run. Raises: UserError."""
    path = Path(path).expanduser()
    for candidate in (path, path / FILE, path / PEFT_FILE, path / "lora" / FILE, path / "final" / "lora" / FILE):
        if candidate.is_file():
            if candidate.suffix != ".safetensors":
                raise UserError(f"LoRA {candidate}: only .safetensors files are read")
            return candidate
    raise UserError(f"LoRA {path}: there is no such file, and no {FILE} in a folder of that name")


def read_lora(path: str | Path) -> dict[str, Adapter]:
    """The adapters in a file, by `unet.<layer>` or `text_encoder.<layer>`.

    Args: path: see `find_lora`; in the format of diffusers, peft or kohya's scripts (see `ldm.models.lora_formats`). Of
        a file of kohya's the layers have "_" for ".".
    Raises: UserError (one line) for a missing, broken or other file, and numbers that are not finite.
    """
    path = find_lora(path)
    try:
        with safe_open(path, "pt") as file:
            settings = _settings(path, file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"LoRA {path} cannot be read: {str(error).splitlines()[0]}") from None
    return adapters_from(tensors, settings, path)


def adapters_from(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any] = MappingProxyType({}), path: object = "of tensors"
) -> dict[str, Adapter]:
    """The adapters in a dict of tensors with the names of such a file; settings: of peft. Raises: as `read_lora`."""
    pieces: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        refuse_other(key, path)
        if (found := parse_key(key)) is None:
            raise UserError(f"LoRA {path} holds {key[:80]!r}: only LoRA weights of unet and text_encoder are read")
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise UserError(f"LoRA {path}: {key[:80]} holds something else than finite numbers")
        layer, side = found
        pieces.setdefault(layer, {})[side] = tensor.float()
    if not pieces:
        raise UserError(f"LoRA {path} is empty")
    return {layer: _adapter(layer, found, settings, path) for layer, found in pieces.items()}


def _settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Those of peft: in the file's metadata, by network, or beside a file of peft's own for whichever network it is."""
    beside = path.with_name(PEFT_SETTINGS)
    if path.name == PEFT_FILE and beside.is_file():
        found = json.loads(beside.read_text(encoding="utf-8"))
        found = found if isinstance(found, dict) else {}
        return {f"{part}.{name}": found.get(name) for part in ("unet", "text_encoder") for name in NETWORK_SETTINGS}
    found = json.loads(metadata.get(SETTINGS, "{}"))
    return found if isinstance(found, dict) else {}


def _adapter(layer: str, found: dict[str, Tensor], settings: Mapping[str, Any], path: object) -> Adapter:
    if not {"up", "down"} <= found.keys():
        raise UserError(f"LoRA {path}: {layer} has only one of its two matrices")
    rank = found["up"].shape[1] if found["up"].ndim > 1 else 0
    if not rank:
        raise UserError(f"LoRA {path}: {layer} has no rank")
    magnitude = found["magnitude"].flatten() if "magnitude" in found else None
    if magnitude is not None and len(magnitude) != len(found["up"]):
        raise UserError(f"LoRA {path}: {layer} has {len(magnitude)} magnitudes for {len(found['up'])} rows")
    of_network = {name: settings.get(f"{layer.split('.')[0]}.{name}") for name in NETWORK_SETTINGS}
    alpha = found["alpha"].flatten()[0].item() if "alpha" in found else None
    return Adapter(found["down"], found["up"], scale_of(layer, rank, alpha, of_network, path), magnitude)


@torch.no_grad()
def merge(
    networks: Mapping[str, Any], adapters: Mapping[str, Adapter], scale: SupportsFloat = 1.0, source: object = ""
) -> None:
    """Add `scale` times the adapters to the weights in place; with 0 nothing changes.

    Args: networks: by name, `unet` and `text_encoder` of them; source: of the adapters, for the message.
    Raises: UserError, before anything is changed, if a layer is missing or of another shape.
    """
    number: Any = Real  # numpy's too
    if not isinstance(scale, number) or not math.isfinite(scale):
        raise UserError(f"lora_scale must be a finite number, got {scale!r}")
    layers = adapted_layers(networks, adapters, source)
    for name, adapter in adapters.items() if scale else ():
        weight = layers[name].weight
        weight.copy_(adapter.added_to(weight, float(scale)))


def adapted_layers(
    networks: Mapping[str, Any], adapters: Mapping[str, Adapter], source: object = ""
) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layer that each adapter belongs to. Raises: UserError if one is missing or of another shape."""
    layers = {
        f"{part}.{spelled}": layer
        for part in ("unet", "text_encoder")
        if part in networks
        for name, layer in networks[part].named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        for spelled in (name, name.replace(".", "_"))  # the latter is kohya's
    }
    for name, adapter in adapters.items():
        shape = tuple(layers[name].weight.shape) if name in layers else None
        if shape is None or shape != adapter.shape:
            what = "has no such layer" if shape is None else f"has {shape} there"
            pair = f"{tuple(adapter.up.shape)} by {tuple(adapter.down.shape)}"
            raise UserError(f"LoRA {source} is for another model: {name[:80]} is {pair}, and this one {what}")
    return {name: layers[name] for name in adapters}


def digest_with(digest: str, path: str | Path, scale: float) -> str:
    """The digest, of 16 hex digits, of a model with a LoRA merged into it, from its own digest."""
    content = hashlib.sha256(find_lora(path).read_bytes()).hexdigest()
    return hashlib.sha256(f"{digest} {content} {float(scale)}".encode()).hexdigest()[:16] if scale else digest


def add_adapters(network: nn.Module, options: StartOptions, targets: list[str]) -> nn.Module:
    """Freeze the network and add an adapter to each layer whose name is, or ends with, one of the targets.

    Raises: UserError if no layer has such a name.
    """
    from peft import LoraConfig, inject_adapter_in_model

    network.requires_grad_(False)
    rank, alpha = options.lora_rank, options.lora_alpha
    try:
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="gaussian")
        inject_adapter_in_model(config, network)
    except ValueError as error:
        raise UserError(f"start.lora_targets {', '.join(targets)}: {str(error).splitlines()[0]}") from None
    return network


def adapters_of(network: nn.Module) -> dict[str, Adapter]:
    """Layer -> copy of its adapter in float32 on the CPU; {} where there are none."""

    def copied(layer: Any) -> Tensor:
        return layer["default"].weight.detach().float().cpu().clone()

    found = _adapted(network).items()
    return {name: Adapter(copied(one.lora_A), copied(one.lora_B), one.scaling["default"]) for name, one in found}


def without_adapters(network: nn.Module) -> nn.Module:
    """A copy with the layers that it had before `add_adapters`."""
    plain = copy.deepcopy(network)
    for name, layer in _adapted(plain).items():
        plain.set_submodule(name, layer.base_layer)
    return plain


def _adapted(network: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}
