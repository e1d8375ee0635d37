"""LoRA adapters that come and go, with the methods of diffusers: `load_lora_weights` and what belongs to it.

diffusers computes with the adapters beside the layers. Here they are added to the weights, so that a step costs nothing
more, and a copy of the weights from before is kept while there are any; removing them gives back the same bits.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.models.lora import FILE, SETTINGS, Adapter, adapted_layers, adapters_from, read_lora
from ldm.pipelines.adapter_weights import Weights, times, weight_of, weights_from
from ldm.pipelines.arguments import NUMBER
from ldm.pipelines.model_folder import HUB_ID
from ldm.utils.errors import UserError
from ldm.utils.hub_client import pull

Adapters = Mapping[str, Adapter]
PARTS = ("unet", "text_encoder")


class LoadedAdapters:
    """The adapters of a pipeline by name, and the weights of their layers as they were without them.

    Attributes:
        active: weights of those that count. fused: of those that `fuse_lora` made part of the networks, {} = none.
        enabled: whether the active ones count.
    """

    def __init__(self) -> None:
        self.loaded: dict[str, Adapters] = {}
        self.active: dict[str, Weights] = {}
        self.fused: dict[str, Weights] = {}
        self.enabled = True
        self._layers: dict[str, dict[str, nn.Linear | nn.Conv2d]] = {}
        self._before: dict[nn.Module, Tensor] = {}
        self._left_fused = ""  # digest of what was fused when it was unloaded

    def add(self, name: str, adapters: Adapters, networks: Mapping[str, Any], source: object) -> None:
        """Load adapters, and activate them alone. Raises: UserError for those of another model."""
        layers = adapted_layers(networks, adapters, source)
        if any(layer.weight.is_meta for layer in layers.values()):
            raise UserError("the weights are offloaded one by one: load adapters before enable_sequential_cpu_offload")
        for layer in layers.values():
            self._before.setdefault(layer, layer.weight.detach().clone())
        self.loaded[name], self._layers[name], self.active = adapters, layers, {name: {"": 1.0}}
        self.apply()

    def remove(self, names: Sequence[str]) -> None:
        """Forget adapters. Once there are none left, what is fused stays in the weights, as in diffusers."""
        if self.fused and not set(self.loaded) - set(names):
            self._left_fused = self.digest()
            self._before.clear()
        for name in names:
            for known in (self.loaded, self._layers, self.active, self.fused):
                known.pop(name, None)
        self.apply()
        if not self.loaded:
            self._before.clear()

    @torch.no_grad()
    def apply(self, factor: float = 1.0) -> None:
        """Put the weights into the layers; `factor` is of the active ones' own."""
        for layer, weight in self._before.items():
            layer.weight.copy_(weight)
        for name, weights in self._scales(factor).items():
            for key, adapter in self.loaded[name].items():
                if scale := weight_of(key, weights):
                    weight = self._layers[name][key].weight
                    weight.copy_(adapter.added_to(weight, scale))

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """The active ones at `factor` within this block."""
        changes = self._scales(factor) != self._scales()
        if changes:
            self.apply(factor)
        try:
            yield
        finally:
            if changes:
                self.apply()

    def digest(self) -> str:
        """Of what is in the weights, "" for nothing."""
        scales = {name: weights for name, weights in sorted(self._scales().items()) if any(weights.values())}
        total = hashlib.sha256(f"{self._left_fused} {scales}".encode())
        for name in scales:
            for key, adapter in sorted(self.loaded[name].items()):
                total.update(key.encode() + adapter.delta().numpy().tobytes())
        return total.hexdigest() if scales else self._left_fused

    def _scales(self, factor: float = 1.0) -> dict[str, Weights]:
        active = self.active if self.enabled else {}
        return self.fused or {name: times(weights, factor) for name, weights in active.items()}


class LoraMethods:
    """The methods of diffusers' `StableDiffusionLoraLoaderMixin`, for a pipeline with `adapters`."""

    adapters: LoadedAdapters
    _lora_loadable_modules = list(PARTS)

    @property
    def fused_loras(self) -> set[str]:
        return set(self.adapters.fused)

    @property
    def num_fused_loras(self) -> int:
        return len(self.adapters.fused)

    def load_lora_weights(
        self: Any,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
    ) -> None:
        """Load adapters and activate them, at scale 1 and alone; `set_adapters` combines several.

        Args:
            pretrained_model_name_or_path_or_dict: see `ldm.models.lora.read_lora`; a Hub id; or a dict of tensors.
            adapter_name: by which it is known, None = default_0, default_1 and so on.
            weight_name: of the file in a folder or repository. subfolder, revision: of it.

        Raises: ValueError for a name in use; UserError for a file that cannot be read or belongs to another model.
        """
        given = pretrained_model_name_or_path_or_dict
        name = adapter_name or f"default_{len(self.adapters.loaded)}"
        if name in self.adapters.loaded:
            raise ValueError(f"adapter_name {name!r} is in use already: choose another, or delete_adapters({name!r})")
        if isinstance(given, Mapping):
            found, source = adapters_from(given), "of tensors"
        else:
            source = str(_located(given, weight_name, subfolder, revision))
            found = read_lora(source)
        parts = {key.partition(".")[0] for key in found}
        self.adapters.add(name, found, {part: self.networks.hand_out(part) for part in parts}, source)

    @staticmethod
    def save_lora_weights(
        save_directory: str | Path,
        unet_lora_layers: Mapping[str, Tensor] | None = None,
        text_encoder_lora_layers: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write adapters that peft trained to a file that `load_lora_weights` of both reads.

        Args: *_lora_layers: as `get_peft_model_state_dict` of the network gives them; *_metadata: the `to_dict()` of
            its LoraConfig, which has alpha; without it alpha is the rank. is_main_process: False writes nothing.
        Raises: ValueError without layers, and for other ways to write; UserError for tensors that are no LoRA.
        """
        if not safe_serialization or save_function is not None:
            raise ValueError("safe_serialization must be True and save_function None: only .safetensors are written")
        tensors: dict[str, Tensor] = {}
        settings: dict[str, Any] = {}
        for part, layers, told in (
            ("unet", unet_lora_layers, unet_lora_adapter_metadata),
            ("text_encoder", text_encoder_lora_layers, text_encoder_lora_adapter_metadata),
        ):
            tensors |= {f"{part}.{name}": tensor.detach().contiguous() for name, tensor in (layers or {}).items()}
            settings |= {f"{part}.{name}": value for name, value in (told or {}).items()}
        if not tensors:
            raise ValueError("save_lora_weights needs unet_lora_layers or text_encoder_lora_layers")
        adapters_from(tensors, settings)
        if is_main_process:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            told_of = {SETTINGS: json.dumps(settings, sort_keys=True, default=list)} if settings else {}
            save_file(tensors, Path(save_directory) / (weight_name or FILE), metadata={"format": "pt", **told_of})

    def unload_lora_weights(self: Any) -> None:
        """Take all adapters out of the weights again; fused ones stay in them, as in diffusers."""
        self.adapters.remove(list(self.adapters.loaded))

    def fuse_lora(
        self: Any,
        components: Sequence[str] = PARTS,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Make adapters a part of the weights, at their weights times `lora_scale`; None = the active ones.

        Numbers that are not finite are refused when adapters are read, so `safe_fusing` changes nothing.
        Raises: ValueError for components other than both.
        """
        if set(components) != set(PARTS):
            raise ValueError(f"components must be both, unet and text_encoder, got {list(components)}")
        names = self._known_adapters(list(self.adapters.active) if adapter_names is None else list(adapter_names))
        self.adapters.fused = {name: times(self.adapters.active.get(name, {"": 1.0}), lora_scale) for name in names}
        self.adapters.apply()

    def unfuse_lora(self: Any, components: Sequence[str] = PARTS) -> None:
        """Undo `fuse_lora`; the adapters are active as they were before it."""
        self.adapters.fused = {}
        self.adapters.apply()

    def set_adapters(self: Any, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """Which adapters are active, and how strongly.

        Args: adapter_weights: one for all or a list of one for each, a number or a dict (see `weights_from`); None = 1.
        Raises: ValueError for unknown names, or too few weights.
        """
        names = self._known_adapters([adapter_names] if isinstance(adapter_names, str) else list(adapter_names))
        one = adapter_weights is None or isinstance(adapter_weights, Mapping | NUMBER)
        given = [adapter_weights] * len(names) if one else list(adapter_weights)
        if len(given) != len(names):
            raise ValueError(
                f"adapter_weights must be one number, or as many as names ({len(names)}), got {len(given)}"
            )
        unet = self.networks.hand_out("unet") if any(isinstance(each, Mapping) for each in given) else None
        weights = [weights_from(1.0 if each is None else each, unet) for each in given]
        self.adapters.active = dict(zip(names, weights, strict=True))
        self.adapters.apply()

    def disable_lora(self: Any) -> None:
        """Generate without the active adapters, until `enable_lora`."""
        self.adapters.enabled = False
        self.adapters.apply()

    def enable_lora(self: Any) -> None:
        self.adapters.enabled = True
        self.adapters.apply()

    def delete_adapters(self: Any, adapter_names: str | Sequence[str]) -> None:
        """Forget adapters. Raises: ValueError for unknown names."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self.adapters.remove(self._known_adapters(names))

    def get_active_adapters(self: Any) -> list[str]:
        return list(self.adapters.active)

    def get_list_adapters(self: Any) -> dict[str, list[str]]:
        """Component -> names of the adapters that it has."""
        found: dict[str, list[str]] = {}
        for name, adapters in self.adapters.loaded.items():
            for part in sorted({key.partition(".")[0] for key in adapters}):
                found.setdefault(part, []).append(name)
        return found

    def _known_adapters(self: Any, names: list[str]) -> list[str]:
        if unknown := [name for name in names if name not in self.adapters.loaded]:
            loaded, wrong = ", ".join(self.adapters.loaded) or "none", ", ".join(map(repr, unknown))
            raise ValueError(f"adapter {wrong} not in the list of present adapters: {loaded}")
        return names


def _located(given: str | Path, weight_name: str | None, subfolder: str | None, revision: str | None) -> Path:
    """The file or folder of adapters that is meant; of a repository, what is read of it is fetched."""
    place, inside = Path(given).expanduser(), Path(subfolder or "") / (weight_name or "")
    if not place.exists() and HUB_ID.fullmatch(str(given)):
        wanted = "*.safetensors" if weight_name is None else weight_name
        if weight_name is not None and not weight_name.endswith(".safetensors"):
            raise UserError(f"weight_name must end with .safetensors: other formats are not read, got {weight_name!r}")
        repo_id, _, tag = str(given).partition("@")
        prefix = f"{subfolder}/" if subfolder else ""
        place = pull(repo_id, revision or tag or None, [prefix + wanted, f"{prefix}adapter_config.json"])
    return place / inside
