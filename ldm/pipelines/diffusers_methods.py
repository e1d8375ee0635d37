"""The methods that users of diffusers know, with the same meaning; differences are listed in docs/use/diffusers.md."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ldm.pipelines.adapters import LoraMethods
from ldm.pipelines.model_folder import COMPONENTS
from ldm.pipelines.textual_inversion import add_token, read_embedding
from ldm.utils.errors import UserError

ABSENT = ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker")  # None or False
OFFLOAD_ORDER = ("text_encoder", "unet", "vae")


class DiffusersMethods(LoraMethods):
    """See the module."""

    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    _optional_components = list(ABSENT[:3])
    safety_checker = feature_extractor = image_encoder = None  # may be set to None, as people do
    _guidance_scale, _num_timesteps, _interrupt = 1.0, 0, False
    _bar: dict[str, Any] = {"disable": True}
    _offload_hooks: tuple[Any, ...] = ()
    _load: ClassVar[Callable[..., Any] | None] = None  # load_pipeline; its module imports this one, and sets it

    # ---- loading and saving -----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        use_safetensors: bool | None = None,
        **components: Any,
    ) -> Any:
        """`load_pipeline` as diffusers spells it: on the CPU until `.to(...)`, and with a progress bar.

        Args:
            pretrained_model_name_or_path: as `path_or_id` of `load_pipeline`.
            torch_dtype, dtype: of the networks, None = float32. device_map: a device. revision: of a Hub id.
            variant: "fp16" = the weights in files of that name. use_safetensors: not False, other formats are not read.
            components: to use in place of those in the folder, by name; safety_checker and others that do not exist
                here may be None.

        Raises: UserError as `load_pipeline`; ValueError for a variant that is not there; TypeError for other names.
        """
        assert cls._load is not None, "from ldm import Pipeline"
        check_absent(components)
        if use_safetensors is False:
            raise UserError("use_safetensors=False: only .safetensors files are read, since others can run code")
        where = pretrained_model_name_or_path if revision is None else f"{pretrained_model_name_or_path}@{revision}"
        pipeline = cls._load(where, device_map or "cpu", torch_dtype or dtype, variant=variant)
        for name in COMPONENTS:
            if components.get(name) is not None:
                setattr(pipeline, name, components[name])
        pipeline.set_progress_bar_config()
        return pipeline

    def save_pretrained(
        self: Any,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
    ) -> None:
        """Write the folder that `from_pretrained` of both reads; earlier components there are replaced.

        Args: variant: write the weights as files with it in their names, such as "fp16". Adapters are saved in the
            weights. safe_serialization: only True; push_to_hub: only False, `ldm push` does it with a card.
        Raises: ValueError for other values; UserError for components that only we have, or a place without space.
        """
        from ldm.pipelines.saving import save_pretrained  # which imports much

        if not safe_serialization:
            raise ValueError("safe_serialization must be True: only .safetensors files are written")
        if push_to_hub:
            raise ValueError("push_to_hub must be False: `ldm push FOLDER user/name` does it, with a model card")
        save_pretrained(self, Path(save_directory), variant)

    @classmethod
    def from_pipe(
        cls, pipeline: Any, torch_dtype: torch.dtype | None = None, dtype: torch.dtype | None = None, **components: Any
    ) -> Any:
        """A pipeline with the components of another, of ours or of diffusers, without copying them.

        Args: torch_dtype, dtype: cast to it, None = leave it, where diffusers casts to float32; components: in place of
            the other's.
        Raises: ValueError if one is missing.
        """
        check_absent(components)
        found = {name: components.get(name, pipeline.components.get(name)) for name in COMPONENTS}
        if missing := [name for name in COMPONENTS if found[name] is None]:
            raise ValueError(f"from_pipe needs {', '.join(missing)}, which {type(pipeline).__name__} does not have")
        made: Any = cls(**found)
        if isinstance(pipeline, DiffusersMethods):
            other: Any = pipeline
            for name in ("defaults", "folder", "lora", "load_weak", "_bar"):
                setattr(made, name, getattr(other, name))
            if components.keys().isdisjoint(("unet", "text_encoder")):
                made.adapters = other.adapters
        wanted = torch_dtype or dtype
        return made if wanted is None else made.to(dtype=wanted)

    def load_textual_inversion(
        self: Any,
        pretrained_model_name_or_path: str | Path | Mapping[str, Tensor],
        token: str | None = None,
    ) -> None:
        """Teach tokenizer and text encoder a word; see `ldm.pipelines.textual_inversion`.

        Raises: ValueError for a word that is there already or vectors of another width; UserError for a file.
        """
        add_token(self.tokenizer, self.text_encoder, *read_embedding(pretrained_model_name_or_path, token))

    # ---- the state of a call, for callbacks -------------------------------------------------------------------------

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale != 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    # ---- progress bar -----------------------------------------------------------------------------------------------

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """tqdm's, with the settings of `set_progress_bar_config`. Raises: ValueError without iterable and total."""
        from tqdm.auto import tqdm

        if iterable is None and total is None:
            raise ValueError("progress_bar needs iterable or total")
        return tqdm(iterable, total=total, **self._bar)

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Show a bar with these settings of tqdm; `disable=True` hides it, which is how `load_pipeline` leaves it."""
        self._bar = settings

    # ---- memory -----------------------------------------------------------------------------------------------------

    def enable_model_cpu_offload(
        self: Any, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep the networks on the CPU, each on the GPU only while it computes.

        Raises: RuntimeError without a GPU; ValueError for a gpu_id beside a device that has an index.
        """
        from accelerate import cpu_offload_with_hook

        where, hook = self._prepare_offload("enable_model_cpu_offload", gpu_id, device), None
        hooks = []
        for name in OFFLOAD_ORDER:
            _, hook = cpu_offload_with_hook(self.networks.hand_out(name), where, prev_module_hook=hook)
            hooks.append(hook)
        self._offload_hooks = tuple(hooks)

    def enable_sequential_cpu_offload(
        self: Any, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As `enable_model_cpu_offload`, layer by layer: the least memory, and slow."""
        from accelerate import cpu_offload

        where = self._prepare_offload("enable_sequential_cpu_offload", gpu_id, device)
        for name in OFFLOAD_ORDER:
            module = self.networks.hand_out(name)
            cpu_offload(module, where, offload_buffers=len(module._parameters) > 0)

    def remove_all_hooks(self: Any) -> None:
        """Undo both."""
        from accelerate.hooks import remove_hook_from_module

        for name in OFFLOAD_ORDER:
            remove_hook_from_module(self.networks.hand_out(name), recurse=True)
        self._offload_hooks = ()

    def maybe_free_model_hooks(self) -> None:
        """Bring the networks back to the CPU where `enable_model_cpu_offload` says so."""
        for hook in self._offload_hooks:
            hook.offload()

    def _prepare_offload(self: Any, method: str, gpu_id: int | None, device: Any) -> torch.device:
        """The device to compute on, everything being on the CPU."""
        where = torch.device(device or torch.accelerator.current_accelerator() or "cpu")
        if where.type == "cpu":
            raise RuntimeError(f"{method} needs a GPU, and none was found")
        if gpu_id is not None and where.index not in (None, gpu_id):
            raise ValueError(f"gpu_id {gpu_id} and device {device} name two: give one of them")
        self.remove_all_hooks()
        self.to("cpu")
        index = where.index if gpu_id is None else gpu_id
        return torch.device(where.type, index or 0)


def check_absent(components: Mapping[str, Any]) -> None:
    """Raises: ValueError for a component that images would go through in diffusers; TypeError for other names."""
    for name in ("safety_checker", "image_encoder", "requires_safety_checker"):
        if components.get(name):
            raise ValueError(f"{name} must be None: there is none here for images to go through")
    if unknown := [name for name in components if name not in (*COMPONENTS, *ABSENT)]:
        raise TypeError(f"unknown argument {', '.join(unknown)}: see docs/use/diffusers.md")
