"""Digests of networks: of their weights, and of the settings with which the same weights compute something else."""

import hashlib

import torch

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
