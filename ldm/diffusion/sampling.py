"""Sampling: the loop over steps, the noise that it starts from, and the denoiser that a network makes.

`denoising_loop` is the one loop; a step is anything that takes `State` to x at its `s`. Our own samplers are steps
(`sampler_step`), a diffusers scheduler is one (`ldm.pipelines.denoising_loop`), and inpainting, resampling and
inversion wrap or replace them there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.process import Batch, NoiseProcess
from ldm.diffusion.samplers import SAMPLERS, Sampler, Step
from ldm.diffusion.schedules import Schedule
from ldm.diffusion.time_grids import Level, levels

Generators: TypeAlias = torch.Generator | list[torch.Generator] | None  # one for all, or one per row
# (x_t (B, ...), t: 0-d float64) -> x0_hat of x_t's shape, or (x0_hat, variance fraction), see `denoise_with`
Denoise: TypeAlias = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class State:
    """A step of the loop, before it (x at t, no x0_hat) or after it (x at s).

    Attributes:
        index: of the step, 0 for the first.
        t, s: the points it leads from and to: times of a grid, or whatever the loop was given as points.
        x: (B, ...).
        x0_hat: the guess of x_0 that was made at t, or None.
    """

    index: int
    t: Any
    s: Any
    x: Tensor
    x0_hat: Tensor | None = None


def denoising_loop(
    step: Callable[[State], tuple[Tensor, Tensor | None]], x: Batch, points: Sequence[Any], first: int = 0
) -> Iterator[State]:
    """Take the steps between successive points, yielding the state after each; the caller may watch, and may stop.

    Args:
        step: state before a step -> (x at state.s, x0_hat or None).
        x: (B, ...), at points[first].
        points: one more than there are steps, in the order in which they are visited.
        first: index of the first step taken; earlier ones are left out (image to image).
    """
    for index in range(first, len(points) - 1):
        t, s = points[index], points[index + 1]
        x, x0_hat = step(State(index, t, s, x))
        yield State(index, t, s, x, x0_hat)


def trajectory(
    denoise: Denoise,
    x_t: Batch,
    schedule: Schedule,
    times: Tensor | Sequence[float],
    sampler: str = "dpmpp_2m",
    generator: Generators = None,
    eta: float | None = None,
) -> Iterator[State]:
    """The states after each step of one of our samplers; `t` and `s` of a state are floats.

    Args:
        denoise: see `Denoise`.
        x_t: where to start, (B, ...), at times[0]; `prior` draws it for t = 1.
        times: falling, two or more, as from `TIME_GRIDS`; a final 0 means the data.
        sampler, eta: a name in `SAMPLERS`, and its fraction of new noise (None = the sampler's own).
        generator: of the new noise; one per row makes each row independent of its batch.

    Raises: ValueError for unknown names, times that do not fall or an eta out of range.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    grid = levels(schedule, times)
    step = sampler_step(SAMPLERS[sampler](eta), denoise, grid, generator)
    return denoising_loop(step, x_t, [level.t for level in grid])


def sampler_step(
    sampler: Sampler, denoise: Denoise, grid: list[Level], generator: Generators = None
) -> Callable[[State], tuple[Tensor, Tensor]]:
    """The step of a sampler for `denoising_loop`, over the times of `grid`; it remembers the last guesses of x_0."""
    past: list[tuple[Level, Tensor]] = []

    def predict(x: Tensor, level: Level) -> tuple[Tensor, Tensor | None]:
        prediction = denoise(x, torch.tensor(level.t, dtype=torch.float64))
        return prediction if isinstance(prediction, tuple) else (prediction, None)

    def step(state: State) -> tuple[Tensor, Tensor]:
        nonlocal past
        t, s, x_t = grid[state.index], grid[state.index + 1], state.x
        x0_hat, variance_fraction = predict(x_t, t)
        at = Step(
            *(t, s, state.index, len(grid) - 1, past),
            denoise=lambda x, level: predict(x, level)[0],
            noise=lambda: standard_normal(x_t, generator),
            variance_fraction=variance_fraction,
        )
        x_s = sampler.step(x_t, x0_hat, at)
        past = [*past[-2:], (t, x0_hat)] if t.alpha else []
        return x_s, x0_hat

    return step


def sample(
    denoise: Denoise, x_t: Batch, schedule: Schedule, times: Tensor | Sequence[float], *args: Any, **options: Any
) -> Batch:
    """x at the end of a `trajectory`; same arguments."""
    for state in trajectory(denoise, x_t, schedule, times, *args, **options):
        x_t = state.x
    return x_t


def prior(
    schedule: Schedule, shape: Sequence[int], generator: Generators = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "..."]:
    """x at t = 1 for data of unit variance: normal noise of deviation sqrt(alpha_1^2 + sigma_1^2)."""
    like = torch.empty(tuple(shape), dtype=dtype)
    return standard_normal(like, generator) * schedule.norm(torch.ones((), dtype=torch.float64)).item()


def standard_normal(like: Batch, generator: Generators = None) -> Batch:
    """Noise of a tensor's shape, dtype and device, drawn in float32: a seed means the same at every precision."""
    if isinstance(generator, list):
        if len(generator) != len(like):
            raise ValueError(f"generator must be one, or one per row ({len(like)}), got {len(generator)}")
        return torch.cat([standard_normal(like[i : i + 1], one) for i, one in enumerate(generator)])
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device).to(like.device, like.dtype)


def denoise_with(process: NoiseProcess, network: Callable[[Tensor, Tensor], Tensor]) -> Denoise:
    """The denoise function of a network.

    Args:
        network: (network input (B, ...), timestep float32) -> prediction, guidance and text already in it.

    Returns: (x_t, t) -> x0_hat; for a process with learned variance (x0_hat, v), where v, -1 to 1, places the
        logarithm of the step's variance between those of beta-tilde and beta. Only DDPM uses it.
    """

    def denoise(x_t: Batch, t: Float[Tensor, ""]) -> Tensor | tuple[Tensor, Tensor]:
        prediction = network(process.network_input(x_t, t), process.timestep(t).float())
        if not process.learned_variance:
            return process.predict_x0(x_t, prediction, t)
        prediction, variance_fraction = prediction.chunk(2, dim=1)
        return process.predict_x0(x_t, prediction, t), variance_fraction

    return denoise
