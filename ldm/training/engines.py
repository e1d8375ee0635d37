"""How the weights of a training lie on the processes: whole in each of them (DDP), or in shards (FSDP2)."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import CLIPTextModel

from ldm.config.settings import RunSettings
from ldm.training import sharding_options
from ldm.training.ema import EMA
from ldm.training.sharding_options import ShardingOptions
from ldm.training.task import Task
from ldm.training.tasks.denoising_loss import DenoisingObjective
from ldm.training.world import any_of
from ldm.utils.errors import UserError


class Replicated:
    """Every process holds the complete model: one process, or DDP.

    Attributes:
        module, model: what is trained, and the part of it that EMA follows.
        text: beside the device in the first line of a training.
    """

    sharded = False

    def __init__(self, accelerator: Accelerator, task: Task, text: str = ""):
        self.accelerator, self.module, self.model, self.text = accelerator, task.module, task.model, text
        device, half = accelerator.device, accelerator.mixed_precision != "no"
        self.module.to(device)
        if half and (task.channels_last or device.type == "cuda"):
            self.module.to(memory_format=torch.channels_last)

    def prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The module to call in training steps, and the optimizer to step."""
        # The moments are where they belong; counts of steps that lie on a GPU would be read from it one by one.
        return self.accelerator.prepare(self.module, optimizer, device_placement=[None, False])

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Within this context gradients are not exchanged."""
        return self.accelerator.no_sync(module)

    def clip_grad_norm(self, most: float) -> Tensor:
        """Scale the gradients so that their norm is at most `most`; the norm that they had."""
        return self.accelerator.clip_grad_norm_(self.module.parameters(), most)

    def whole(self, ema: EMA | None) -> AbstractContextManager[None]:
        """Within this context the task's model has all its weights, or their EMA, on the device."""
        return ema.swapped_in(self.model.parameters()) if ema else nullcontext()

    def of_main(self, flag: bool) -> bool:
        """The flag of the process that decides on what all do together; here each for itself."""
        return flag


class Sharded:
    """Each process holds its rows of every weight, gradient, moment and average: FSDP2.

    What is trained is a copy of the task's module. The module itself stays whole on the CPU of the main process, for
    reports and the finished model; that of other processes is emptied.
    """

    sharded, text = True, ", in shards (FSDP2)"

    def __init__(self, accelerator: Accelerator, task: Task, options: ShardingOptions):
        self.accelerator, self.device = accelerator, accelerator.device
        self.on_main, self.on_main_model = task.module.cpu(), task.model
        frozen = (getattr(task.module, name, None) for name in ("vae", "resident"))  # in tuples, for latents of a step
        shared = {id(one): one for group in frozen if isinstance(group, tuple) for one in group}
        self.module, self.model = copy.deepcopy((task.module, task.model), shared)
        if not accelerator.is_main_process:
            task.module.to("meta")
        self.mesh = init_device_mesh(self.device.type, (accelerator.num_processes,))
        shard(self.module, self.mesh, options, self.device)

    def prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """As of `Replicated`; accelerate adds its autocast, and wraps nothing."""
        module = self.accelerator.prepare_model(self.module, device_placement=False, evaluation_mode=True)
        return module, self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    @contextmanager
    def no_sync(self, module: nn.Module) -> Iterator[None]:
        self.module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)

    @torch.no_grad()
    def clip_grad_norm(self, most: float) -> Tensor:
        shards = [p.grad.to_local() for p in self.module.parameters() if p.grad is not None]
        square = nn.utils.get_total_norm(shards).square()
        distributed.all_reduce(square, group=self.mesh.get_group())
        norm = square.sqrt()
        torch._foreach_mul_(shards, (most / (norm + 1e-6)).clamp(max=1))
        return norm

    @contextmanager
    def whole(self, ema: EMA | None) -> Iterator[None]:
        """As of `Replicated`, in the main process; all processes have to enter."""
        self._gather(self.on_main, dict(self.module.named_parameters()))
        if ema:
            names = [name for name, _ in self.model.named_parameters()]
            self._gather(self.on_main_model, dict(zip(names, ema.shadow_params, strict=True)))
        if self.accelerator.is_main_process:
            self.on_main.to(self.device)
        try:
            yield
        finally:
            if self.accelerator.is_main_process:
                self.on_main.cpu()

    @torch.no_grad()
    def _gather(self, target: nn.Module, values: dict[str, Any]) -> None:
        """Fill what is trained of a module of the main process, one tensor at a time."""
        for name, parameter in target.named_parameters():
            if parameter.requires_grad:
                value = values[name].full_tensor()
                if self.accelerator.is_main_process:
                    parameter.copy_(value)

    def of_main(self, flag: bool) -> bool:
        return bool(any_of(int(flag and self.accelerator.is_main_process)))


def build_engine(accelerator: Accelerator, task: Task, settings: RunSettings, writes: bool) -> Replicated | Sharded:
    """As the launcher asks for; only denoisers are sharded.

    `writes`: whether this process writes checkpoints. Raises: UserError for what cannot be sharded.
    """
    options = sharding_options.asked()
    if options is None or not isinstance(task.module, DenoisingObjective):
        return Replicated(accelerator, task, "" if options is None else "; FSDP shards denoisers, this one is whole")
    sharding_options.check_settings(settings, accelerator.mixed_precision)
    if any_of(int(writes and not accelerator.is_main_process)):
        raise UserError("FSDP needs an --output-dir that all machines share: each writes a part of a checkpoint")
    return Sharded(accelerator, task, options)


def shard(module: nn.Module, mesh: Any, options: ShardingOptions, device: torch.device) -> None:
    """Leave each process its rows of the weights of `module`, on the device.

    Teachers stay whole: each process calls its own as often as its samples ask for.
    """
    teacher = getattr(module, "teacher", None)
    ignored = set() if teacher is None else {*teacher.to(device).parameters()}
    for layer in layers_of(module, options.layers):
        if not ignored & {*layer.parameters()}:
            fully_shard(layer, mesh=mesh, reshard_after_forward=options.reshard_after_forward)
    fully_shard(module, mesh=mesh, ignored_params=ignored or None)


def layers_of(module: nn.Module, classes: tuple[str, ...] | None) -> list[nn.Module]:
    """The layers whose weights are gathered together, inner ones first. Raises: UserError for an unknown class."""
    if classes is not None:
        found = [layer for layer in module.modules() if type(layer).__name__ in classes]
        if missing := {*classes} - {type(layer).__name__ for layer in found}:
            raise UserError(f"fsdp_transformer_layer_cls_to_wrap {', '.join(sorted(missing))}: the model has none")
        return found[::-1]
    layers: list[nn.Module] = []
    for part in module.modules():
        if isinstance(part, UNet2DConditionModel):
            layers += [*part.down_blocks, *filter(None, [part.mid_block]), *part.up_blocks]
        elif isinstance(part, CLIPTextModel):
            layers += [layer for layer in part.modules() if type(layer).__name__ == "CLIPEncoderLayer"]
    return layers
