"""What `accelerate launch` asks for of FSDP2: followed, or refused by name.

`ldm.training.engines` calls torch's `fully_shard` itself, on GPUs and on CPUs alike: accelerate shards on no CPU. Its
variable is hidden from libraries, because transformers, if it sees it, loads weights in the first process alone.
"""

import os
from dataclasses import dataclass

from ldm.config.settings import RunSettings
from ldm.utils.errors import UserError
from ldm.utils.runtime import launched_processes

VARIABLE = "ACCELERATE_USE_FSDP"
TRUE = ("1", "true", "yes")
# Variable -> what to do instead. Those that FSDP2 has no use for (use_orig_params and the like) are not here.
REFUSED = {
    "FSDP_OFFLOAD_PARAMS": "weights stay on the device: set it to false",
    "FSDP_FORWARD_PREFETCH": "FSDP2 decides that: set it to false",
    "FSDP_ACTIVATION_CHECKPOINTING": "set it to false and train.gradient_checkpointing to true",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "set it to false",
}


@dataclass(frozen=True)
class ShardingOptions:
    """How a model is sharded.

    Attributes:
        reshard_after_forward: whether whole weights are freed between the forward and the backward pass.
        layers: classes of the layers whose weights are gathered together; None = the blocks of U-Nets and the layers
            of text encoders. The remaining weights are gathered once in a step.
    """

    reshard_after_forward: bool = True
    layers: tuple[str, ...] | None = None


_asked: ShardingOptions | None = None


def take_over() -> None:
    """Note what the launcher asks for, and hide it from libraries. Raises: UserError for what there is not here."""
    global _asked
    if os.environ.get(VARIABLE, "").lower() in TRUE:
        _asked = read()
        del os.environ[VARIABLE]


def asked() -> ShardingOptions | None:
    """What the launcher asked for, None if not for FSDP or for one process, which has nothing to share."""
    return _asked if launched_processes() > 1 else None


def read() -> ShardingOptions:
    """The options in the environment. Raises: UserError for one that would be ignored."""
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(f"accelerate launch asks for FSDP in version {version}; only 2 is supported: fsdp_version: 2")
    for variable, advice in REFUSED.items():
        if os.environ.get(variable, "").lower() in TRUE:
            raise UserError(f"accelerate launch asks for {variable.lower()}, which is not supported: {advice}")
    if ignored := os.environ.get("FSDP_IGNORED_MODULES"):
        raise UserError(f"accelerate launch asks for fsdp_ignored_modules {ignored}, which is not supported: remove it")
    kind = os.environ.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    if kind != "SHARDED_STATE_DICT":
        raise UserError(
            f"accelerate launch asks for fsdp_state_dict_type {kind}; checkpoints are sharded and the finished model "
            "is whole: set SHARDED_STATE_DICT"
        )
    return ShardingOptions(_reshards(), _layers())


def _reshards() -> bool:
    given = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if given not in ("true", "false"):
        raise UserError(f"accelerate launch asks for fsdp_reshard_after_forward {given}: set it to true or false")
    return given == "true"


def _layers() -> tuple[str, ...] | None:
    policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP").upper()
    if policy == "NO_WRAP":
        return ()
    if policy != "TRANSFORMER_BASED_WRAP":
        raise UserError(
            f"accelerate launch asks for fsdp_auto_wrap_policy {policy}; there are TRANSFORMER_BASED_WRAP (by blocks, "
            "or by fsdp_transformer_layer_cls_to_wrap) and NO_WRAP: give it one of them"
        )
    names = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    return tuple(name.strip() for name in names.split(",") if name.strip()) or None


def check_settings(settings: RunSettings, precision: str) -> None:
    """Raises: UserError, where a denoiser is to be sharded, for a setting with which that is not supported."""
    if asked() is None:
        return
    options, dynamo = settings.model_dump(), os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    faults = {
        f"optim.name {settings.optim.name}": settings.optim.name != "adamw" and "its steps need whole weights: adamw",
        f"mixed precision {precision}": precision == "fp16" and "set train.mixed_precision bf16 or no",
        "train.compile": settings.train.compile and "set it to false",
        "train.ema_offload": settings.train.ema_offload and "FSDP divides the average: set it to false",
        f"dynamo backend {dynamo}": dynamo != "no" and "answer no to it in `accelerate config`",
        "alignment.weight": options.get("alignment", {}).get("weight") and "set it to 0",
        "start.lora_rank": options.get("start", {}).get("lora_rank") and "adapters are small enough without",
    }
    for name, advice in faults.items():
        if advice:
            raise UserError(f"{name} is not supported with FSDP: {advice}; or use configs/accelerate/eight-gpus.yaml")
