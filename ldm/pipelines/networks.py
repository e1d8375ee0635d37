"""The three networks of a pipeline, in torch or in ONNX Runtime, without a difference that nobody sees.

A graph (see `onnx_runtime`) computes with the weights on disk. Whoever wants to change a network in memory has to ask
for the torch module first; so graphs compute only where nobody has asked, and from then on that network runs in torch.
Modules that only graphs stand for so far are not even loaded.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.pipelines.onnx_runtime import Engine
from ldm.utils.errors import UserError

log = logging.getLogger(__name__)
NETWORKS = ("vae", "text_encoder", "unet")


@dataclass(frozen=True)
class OnDisk:
    """A network that is loaded when it is needed: its config, and what loads it."""

    config: Any
    load: Callable[[], nn.Module]


class Networks:
    """vae, text_encoder and unet, shared by copies of a pipeline.

    Args:
        modules: all three by name, each a module or one `OnDisk`.
        engine: graphs that compute in their place; None = torch.
        fixed: with graphs, refuse to give a module away.
    """

    def __init__(self, modules: Mapping[str, nn.Module | OnDisk], engine: Engine | None = None, fixed: bool = False):
        self._modules, self._engine, self._fixed = dict(modules), engine, fixed
        self._in_torch = set(NETWORKS) if engine is None else set[str]()
        for module in modules.values():
            if isinstance(module, nn.Module):
                module.eval()

    @property
    def engines(self) -> dict[str, str]:
        """What each network runs in, "torch" or "onnx"."""
        return {name: "torch" if name in self._in_torch else "onnx" for name in NETWORKS}

    @property
    def device(self) -> torch.device:
        """Where the networks compute."""
        return self._device("unet")

    def _device(self, name: str) -> torch.device:
        module = self._modules[name]
        return execution_device(module) if isinstance(module, nn.Module) else torch.device("cpu")

    def dtype(self, name: str = "unet") -> torch.dtype:
        return getattr(self._modules[name], "dtype", torch.float32)

    def config(self, name: str) -> Any:
        return self._modules[name].config

    def module(self, name: str) -> nn.Module:
        """A network to compute with, as its weights on disk are unless somebody has asked for it.

        It must not be changed nor given away: `hand_out` is for that.
        """
        found = self._modules[name]
        if isinstance(found, OnDisk):
            with torch.inference_mode(False):
                found = self._modules[name] = found.load().eval()
        return found

    def hand_out(self, name: str) -> nn.Module:
        """A network for somebody who may change it: from now on it runs in torch. Raises: UserError if it is fixed."""
        if name not in self._in_torch:
            if self._fixed:
                raise UserError(
                    f"the {name} of a pipeline with engine='onnx' cannot be read or changed: "
                    "load_pipeline(..., engine='torch') gives one whose networks can"
                )
            log.info("%s was asked for, so it runs in torch from now on", name)
            self._in_torch.add(name)
        return self.module(name)

    def replaced(self, name: str, module: nn.Module) -> "Networks":
        """The networks with another one in place of `name`, all in torch: two owners share the others."""
        return Networks({each: self.hand_out(each) for each in NETWORKS} | {name: module})

    # ---- what they compute ------------------------------------------------------------------------------------------

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, clip_skip: int | None = None
    ) -> Tensor:
        """Hidden states (B, L, D) of tokens (B, L) int64; without a mask every token is attended to.

        `clip_skip` leaves out that many of the last layers, 0 or more, but not the final normalization.
        """
        engine = self._graph("text_encoder") if attention_mask is None and clip_skip is None else None
        if engine and engine.length == input_ids.shape[1]:
            return torch.from_numpy(engine.encode_text(input_ids.numpy()))
        encoder: Any = self.module("text_encoder")
        device = self._device("text_encoder")
        mask = {} if attention_mask is None else {"attention_mask": attention_mask.to(device)}
        if clip_skip is None:
            return encoder(input_ids.to(device), **mask)[0]
        states = encoder(input_ids.to(device), **mask, output_hidden_states=True).hidden_states
        return getattr(encoder, "text_model", encoder).final_layer_norm(states[-1 - clip_skip])

    def predict(self, x_t: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The U-Net's prediction (B, c, h, w) of noisy latents, one timestep for all or (B,), embeddings (B, L, D)."""
        engine = self._graph("unet")
        # torch takes prompts of any length and images of any size
        if engine and engine.length == prompt_embeds.shape[1] and engine.takes("unet", x_t.shape):
            timesteps = timestep.expand(len(x_t)).float()
            return torch.from_numpy(engine.predict(x_t.numpy(), timesteps.numpy(), prompt_embeds.numpy()))
        return self.predict_in_torch(x_t, timestep, prompt_embeds)

    def predict_in_torch(self, x_t: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """As `predict`, with gradients."""
        return run_unet(self.module("unet"), x_t, timestep, prompt_embeds)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W), about -1 to 1, float32, of the VAE's own latents (B, c, h, w); gradients flow."""
        engine = None if latents.requires_grad else self._graph("vae")
        if engine and engine.takes("vae", latents.shape):
            return torch.from_numpy(engine.decode(latents.numpy()))
        return self.module("vae").decode(latents, return_dict=False)[0].float()

    def _graph(self, name: str) -> Engine | None:
        return None if name in self._in_torch else self._engine


def run_unet(unet: nn.Module, x_t: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
    """The prediction of a denoiser that is called as those of diffusers are.

    A timestep on the CPU is sent ahead: the U-Net itself would wait for the GPU to have taken it.
    """
    if timestep.is_floating_point():
        timestep = timestep.float()  # as the U-Net computes with it; an Apple GPU has no float64
    timestep = timestep.to(x_t.device, non_blocking=True)
    return unet(x_t, timestep, encoder_hidden_states=prompt_embeds, return_dict=False)[0]


def execution_device(module: nn.Module) -> torch.device:
    """Where a network computes, which is not where its weights lie while they are offloaded."""
    for part in module.modules():
        found = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if found is not None:
            return torch.device(found)
    own: Any = getattr(module, "device", torch.device("cpu"))
    return own
