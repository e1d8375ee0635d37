"""The loop over steps, the noise it begins with, and the denoiser of a network."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.samplers import SAMPLERS, Step
from ldm.diffusion.schedules import Schedule
from ldm.diffusion.time_grids import Level, levels

if TYPE_CHECKING:
    from typing import TypeAlias

    import torch
    from torch import Tensor

    Generators: TypeAlias = torch.Generator | list[torch.Generator] | None
    Denoise: TypeAlias = Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]


class State(NamedTuple):
    """After a step: its number, 0 for the first, the times it led from and to, x at s, and x0_hat as seen from t."""

    step: int
    t: float
    s: float
    x: "Tensor"
    x0_hat: "Tensor"


def trajectory(
    denoise: "Denoise",
    x_t: "Tensor",
    schedule: Schedule,
    times: "Tensor | list[float]",
    sampler: str = "dpmpp_2m",
    generator: "Generators" = None,
    eta: float | None = None,
) -> Iterator[State]:
    """Walk down the times, giving the state after every step; the caller may watch, and may stop.

    Args:
        denoise: (x_t (B, ...), t: 0-d float64) -> x0_hat of x_t's shape, or (x0_hat, share), see `denoise_with`.
        x_t: where to start, (B, ...), at times[0]; `prior` draws it for t = 1.
        times: falling, two or more, as from `TIME_GRIDS`; a final 0 means the data.
        sampler, eta: a name in `SAMPLERS`, and its share of new noise (None = the sampler's own).
        generator: of the new noise: one for all, or one per row, which makes each row independent of its batch.

    Raises: ValueError for unknown names, times that do not fall or an eta out of range.
    """
    import torch

    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    chosen, points = SAMPLERS[sampler](eta), levels(schedule, times)

    def predict(x: "Tensor", level: Level) -> "tuple[Tensor, Tensor | None]":
        found = denoise(x, torch.tensor(level.t, dtype=torch.float64))
        return found if isinstance(found, tuple) else (found, None)

    past: list[tuple[Level, Tensor]] = []
    for index, (t, s) in enumerate(zip(points[:-1], points[1:], strict=True)):
        x0_hat, share = predict(x_t, t)
        tools = (lambda x, level: predict(x, level)[0], lambda like=x_t: standard_normal(like, generator))
        x_t = chosen.step(x_t, x0_hat, Step(t, s, index, len(points) - 1, past, *tools, share))
        past = [*past[-2:], (t, x0_hat)] if t.alpha else []
        yield State(index, t.t, s.t, x_t, x0_hat)


def sample(denoise: "Denoise", x_t: "Tensor", schedule: Schedule, times, *args, **options) -> "Tensor":
    """The end of a `trajectory`, of x_t's shape; same arguments."""
    for state in trajectory(denoise, x_t, schedule, times, *args, **options):
        x_t = state.x
    return x_t


def prior(schedule: Schedule, shape: tuple[int, ...], generator: "Generators" = None, dtype=None) -> "Tensor":
    """x at t = 1 for data of unit variance, float32 unless told otherwise; generators as in `trajectory`."""
    import torch

    like = torch.empty(shape, dtype=dtype or torch.float32)
    return standard_normal(like, generator) * schedule.norm(torch.ones((), dtype=torch.float64)).item()


def standard_normal(like: "Tensor", generator: "Generators" = None) -> "Tensor":
    """Noise of a tensor's shape, dtype and device, drawn in float32: a seed means the same at every precision."""
    import torch

    if isinstance(generator, list):
        if len(generator) != len(like):
            raise ValueError(f"generator must be one, or one per row ({len(like)}), got {len(generator)}")
        return torch.cat([standard_normal(like[i : i + 1], one) for i, one in enumerate(generator)])
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device).to(like.device, like.dtype)


def denoise_with(process: NoiseProcess, network: "Callable[[Tensor, Tensor], Tensor]") -> "Denoise":
    """The denoise function of a network.

    Args:
        network: (network input (B, ...), timestep float32) -> prediction, guidance and text already in it.

    Returns: (x_t, t) -> x0_hat; for a process with learned variance (x0_hat, share), where `share`, -1 to 1, places the
        logarithm of the step's variance between those of beta-tilde and beta. Only DDPM uses it.
    """

    def denoise(x_t: "Tensor", t: "Tensor") -> "Tensor | tuple[Tensor, Tensor]":
        prediction = network(process.network_input(x_t, t), process.timestep(t).float())
        if not process.learned_variance:
            return process.predict_x0(x_t, prediction, t)
        prediction, share = prediction.chunk(2, dim=1)
        return process.predict_x0(x_t, prediction, t), share

    return denoise
