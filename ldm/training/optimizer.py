"""The optimizers: AdamW, AdamW in 8 bits, or Muon for the matrices of hidden layers with AdamW for everything else.

Muon makes the momentum of a weight matrix orthogonal: every direction that the gradients point to gets a step of one
length. Kernels count as matrices (outputs, inputs x height x width). Source: Jordan et al. 2024,
kellerjordan.github.io/posts/muon; the scale is that of Liu et al. 2025, arXiv 2502.16982, eq. 4, with which AdamW's
learning rate and weight decay can be kept.
"""

import functools
import math
import timeit
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from ldm.config.settings import OptimOptions
from ldm.training import eight_bit

T = TypeVar("T", bound=Tensor)

NARROW = 16  # the first and the last layer have few channels on one side: AdamW's
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: steep at 0, so that 5 rounds do
ROUNDS = 5
MOMENTUM = 0.95


def lr_factor(optim: OptimOptions, step: int, num_steps: int) -> float:
    """The learning rate at a global step (0-based) as a fraction of `optim.lr`: linear warm-up, then the schedule."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return 1.0
    if optim.schedule == "cosine":
        progress = (step - optim.warmup_steps) / max(1, num_steps - optim.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * progress))
    decay_steps = max(1, round(optim.decay_fraction * num_steps))
    return min(1.0, (num_steps - step) / decay_steps)


def build_optimizer(module: nn.Module, optim: OptimOptions) -> torch.optim.Optimizer:
    """The optimizer that the settings name, of everything in `module` that is trained."""
    groups = parameter_groups(module, optim.weight_decay)
    if optim.name == "muon":
        hidden = hidden_matrices(module)
        decayed = groups[0]["params"]
        groups[0]["params"] = [p for p in decayed if p not in hidden]
        matrices = [p for p in decayed if p in hidden]
        return Muon([*groups, {"params": matrices, "weight_decay": optim.weight_decay, "orthogonal": True}], optim)
    if optim.name == "adamw8bit":
        return eight_bit.build(groups, optim)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)


def kept_moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[nn.Parameter, dict[str, Tensor]]]:
    """Of each parameter what a checkpoint holds."""
    for parameter, state in optimizer.state.items():
        yield parameter, {key: torch.as_tensor(value) for key, value in state.items() if key not in eight_bit.CODES}


def restore_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, moments: dict[str, Tensor]) -> None:
    """Give a parameter what a checkpoint holds of it."""
    if "state1" in moments:
        return eight_bit.restore(optimizer, parameter, moments)
    counts_there = optimizer.defaults.get("fused")  # other kernels would read each count from the device
    for key, value in moments.items():
        if key != "step":  # moments must lie in memory as their parameter does
            value = torch.empty_like(parameter).copy_(value)
        elif counts_there:
            value = value.to(parameter.device)
        optimizer.state[parameter][key] = value


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for matrices and kernels only; never for biases, norms and other vectors."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def hidden_matrices(module: nn.Module) -> set[nn.Parameter]:
    """Weights of linear layers and convolutions with at least `NARROW` inputs and outputs; embeddings are excluded."""
    weights = (layer.weight for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    return {weight for weight in weights if weight.requires_grad and min(weight.shape[:2]) >= NARROW}


class Muon(torch.optim.AdamW):
    """AdamW, but for the groups with `orthogonal`, whose matrices take Muon's step.

    torch.optim.Muon has no kernels, takes no other group, and computes in bf16 where that is emulated 80 times slower.
    """

    param_groups: list[dict]

    def __init__(self, groups: list[dict], optim: OptimOptions):
        groups = [{"orthogonal": False} | group for group in groups]
        super().__init__(groups, lr=optim.lr, betas=optim.betas, foreach=True)

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            raise ValueError("Muon takes no closure")
        every = self.param_groups
        for group in every:
            if group["orthogonal"]:
                self._turn([one for one in group["params"] if one.grad is not None], group["lr"], group["weight_decay"])
        self.param_groups = [group for group in every if not group["orthogonal"]]
        try:
            super().step()
        finally:
            self.param_groups = every

    def shares(self, count: int) -> list[list[nn.Parameter]]:
        """The matrices in `count` parts that take about as long as one another."""
        matrices = [one for group in self.param_groups if group["orthogonal"] for one in group["params"]]
        return divided(matrices, count)

    def _turn(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        updates = map(self._update, parameters)
        several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        on_cpu = bool(parameters) and parameters[0].device.type == "cpu"
        directions = divided_orthogonal([*updates]) if several and on_cpu else map(orthogonal, updates)
        for parameter, direction in zip(parameters, directions, strict=True):
            rate = 0.2 * lr * max(direction.shape) ** 0.5  # root mean square 0.2 lr, as AdamW's steps are
            parameter.mul_(1 - lr * weight_decay)
            parameter.add_(direction.reshape(parameter.shape).to(parameter.dtype), alpha=-rate)

    def _update(self, parameter: nn.Parameter) -> Tensor:
        """The gradient with its momentum, by Nesterov's rule, as a matrix."""
        state = self.state[parameter]
        if not state:  # AdamW reads a count of steps wherever there is a state
            state.update(step=torch.zeros(()), momentum_buffer=torch.zeros_like(parameter))
        state["step"] += 1
        momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(momentum, MOMENTUM).flatten(1)


def divided_orthogonal(matrices: list[Tensor]) -> Iterator[Tensor]:
    """`orthogonal` of each, in their order, in float32: processes that all have the same ones divide the work.

    With few images in each process it is the greater part of a step on CPUs.
    """
    shares, rank = divided(matrices, distributed.get_world_size()), distributed.get_rank()
    found = [torch.zeros(sum(one.numel() for one in share)) for share in shares]
    for one, place in zip(shares[rank], found[rank].split([one.numel() for one in shares[rank]]), strict=True):
        place.copy_(orthogonal(one).flatten())
    for work in [distributed.broadcast(each, source, async_op=True) for source, each in enumerate(found)]:
        work.wait()
    pieces = {
        id(one): piece.view_as(one)
        for share, each in zip(shares, found, strict=True)
        for one, piece in zip(share, each.split([one.numel() for one in share]), strict=True)
    }
    yield from (pieces[id(one)] for one in matrices)


def divided(matrices: Sequence[T], count: int) -> list[list[T]]:
    """In `count` parts that take `orthogonal` about as long; in every process the same."""
    parts: list[list[T]] = [[] for _ in range(count)]
    seconds = [0.0] * count
    for one in sorted(matrices, key=cost, reverse=True):
        least = seconds.index(min(seconds))
        parts[least].append(one)
        seconds[least] += cost(one)
    return parts


def cost(matrix: Tensor) -> int:
    """Multiplications of a round of `orthogonal`, about."""
    rows, columns = len(matrix), matrix.numel() // len(matrix)
    short, long = min(rows, columns), max(rows, columns)
    return 2 * short**2 * long + short**3


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix (m, n) with its singular values brought near 1, roughly: to between 0.7 and 1.2.

    Newton and Schulz's iteration of fifth degree, in bf16 where the device has it, else in float32.
    """
    x = matrix.to(torch.bfloat16 if native_bf16(matrix.device) else torch.float32)
    if tall := matrix.shape[0] > matrix.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def native_bf16(device: torch.device) -> bool:
    """Whether the GPU, or the CPU by AMX or AVX512, computes in bf16 itself, and gains by it.

    Elsewhere it is emulated: convolutions 3 to 7 times and matrix products 80 times slower than fp32. AVX512 has it in
    all recent CPUs, but some take twice as long as in fp32, so a product is timed there.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and _bf16_pays())


@functools.cache
def _bf16_pays() -> bool:
    """Whether a matrix product on this CPU takes no longer in bf16 than in fp32: 0.6 or 2 times as long, as seen."""
    least = {}
    for dtype in (torch.bfloat16, torch.float32):
        matrix = torch.ones(128, 128, dtype=dtype)  # not random: that would move the generator of a training
        least[dtype] = min(timeit.repeat(functools.partial(torch.mm, matrix, matrix), number=1, repeat=50))
    return least[torch.bfloat16] < 1.2 * least[torch.float32]
