"""Guidance as a wrapper around any denoiser, so that every sampler gets it unchanged.

    prediction = uncond + scale (cond - uncond)

`cond` is conditioned on the prompt. `uncond` is conditioned on the null caption or a negative prompt: classifier-free
guidance (Ho and Salimans 2022, arXiv 2207.12598, with scale = 1 + w in the paper's letters). Or it comes from a weaker
network with the same prompt: autoguidance (Karras et al. 2024, arXiv 2406.02507). Scale 1 is off.

The rule is linear, so at one (x_t, t) it is the same for eps, v, x_0, score and flow velocity. Of the refinements in
`Guidance` the interval keeps that. The optimized scale and zero-init are about velocities, and other predictions are
converted there and back. The rescale acts on what the network predicts, as in its paper and in diffusers.

Several prompts of one image make one `cond` = uncond + sum of w_i (cond_i - uncond): with positive weights all of them
hold (AND), a negative weight leads away from its prompt (NOT), as in composable diffusion (Liu et al. 2022, arXiv
2206.01714, eq. 11, whose weights are scale times ours).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

from ldm.diffusion.parameterization import convert
from ldm.diffusion.process import Batch, NoiseProcess, expand_to
from ldm.diffusion.schedules import Times

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t, t, prompt embeddings) -> prediction of x_t's shape
Channels = Float[Tensor, "b _ ..."]  # as many channels as x_t, or twice as many with a learned variance
EDGE = 1e-6  # times within this of an end of an interval count as inside


@dataclass(frozen=True)
class Guidance:
    """How strongly to guide, when, and in which manner. The default is off.

    Args:
        scale: 1 = off, 0 = the negative (or weak) prediction alone, above 1 exaggerates the prompt.
        interval: guide only at times first <= t <= last, 0 being data and 1 noise; elsewhere the conditional
            prediction is used alone, at half the cost (Kynkaanniemi et al. 2024, arXiv 2404.07724). They are times of
            the schedule: its shift, if it has one, makes x_t noisier at each of them.
        rescale: 0 to 1, how far to bring each sample's standard deviation back to that of the conditional prediction
            (phi of Lin et al. 2023, arXiv 2305.08891, sec. 3.4).
        zero_star: scale `uncond` to its projection onto `cond` first, CFG-Zero* (Fan et al. 2025, arXiv 2503.18886).
        zero_init: fraction of the time, from t = 1 down, in which the velocity is 0; the same paper's zero-init.
            Evenly spaced steps that start in it are its "first steps": 0.05 is the first of 20.

    Raises: ValueError naming what is out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    zero_star: bool = False
    zero_init: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise ValueError(f"the guidance scale must be a finite number, 0 or more (1 = off), got {self.scale!r}")
        if len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(f"the guidance interval must be two times 0 <= first <= last <= 1, got {self.interval!r}")
        for name in ("rescale", "zero_init"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"guidance {name} must be from 0 to 1, got {getattr(self, name)!r}")

    def inside(self, t: Times) -> Bool[Tensor, "*t"]:
        """Which times lie in the interval."""
        return (t >= self.interval[0] - EDGE) & (t <= self.interval[1] + EDGE)


def guide(
    denoiser: Denoiser,
    condition: Tensor,
    negative: Tensor | None,
    guidance: Guidance | float,
    *,
    weights: Sequence[float] | None = None,
    weak: Denoiser | None = None,
    process: NoiseProcess | None = None,
    time: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Bind the conditions and the rule to `denoiser`.

    Costs per call, for a batch of B: one pass of B when off or outside the interval; else one pass of 2B, negatives
    first; with `weak` one pass of B of each network; with `weights` always one pass of (1 + K) B.

    Args:
        denoiser: the network; x_t is as the network sees it. Where it gives twice as many channels, the others are a
            learned variance: not guided, the conditional one is kept.
        condition: embeddings of the prompts, (B, L, D), or with `weights` (B, K, L, D).
        negative: embeddings of the negative (or null) prompts, (B, L, D), for `weak` where that is given. None = off,
            or, with `weak`, the same as `condition`.
        guidance: the rule, or only its scale.
        weights: of the K prompts that each sample has, any numbers; a weight of 1 on one prompt changes nothing.
        weak: a worse denoiser of the same samples, to lead away from. Not together with `weights`.
        process: the noise process, for the rules about velocities; None = `denoiser` predicts velocities.
        time: the t of our convention from the `t` that `denoiser` takes; None = they are the same.

    Returns: a callable (x_t (B, ...), t: one for all or (B,)) -> guided prediction (B, ...).
    Raises: ValueError if the two conditions differ in shape, or weights do not fit.
    """
    rule = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    _check_conditions(condition, negative, weights, weak)
    off = rule.scale == 1 or (negative is None and weak is None)
    everywhere = rule.interval == (0, 1)

    def predict(x_t: Tensor, t: Tensor, our_t: Tensor) -> Tensor:
        inside = None if everywhere else rule.inside(our_t)
        if weights is None and (off or (inside is not None and not inside.any())):
            return denoiser(x_t, t, condition)
        uncond, cond = _both(denoiser, weak, x_t, t, condition, negative, weights)
        guided = _combine(rule, uncond, cond, x_t, our_t, process)
        return guided if inside is None else _where(inside, guided, cond)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        our_t = t if time is None else time(t)
        prediction = predict(x_t, t, our_t)
        return _zero_init(rule, prediction, x_t, our_t, process) if rule.zero_init else prediction

    return guided


def _check_conditions(
    condition: Tensor, negative: Tensor | None, weights: Sequence[float] | None, weak: Denoiser | None
) -> None:
    if weights is not None and (weak is not None or negative is None or len(weights) != condition.shape[1]):
        raise ValueError(f"weights {weights!r} need a negative, no weak denoiser and as many prompts for each sample")
    one = condition if weights is None else condition[:, 0]
    if weak is None and negative is not None and negative.shape != one.shape:
        raise ValueError(f"negative must have condition's shape {tuple(one.shape)}, got {tuple(negative.shape)}")


def _both(
    denoiser: Denoiser,
    weak: Denoiser | None,
    x_t: Batch,
    t: Real[Tensor, "*t"],
    condition: Tensor,
    negative: Tensor | None,
    weights: Sequence[float] | None,
) -> tuple[Tensor, Tensor]:
    """(uncond without learned variance, cond); of several prompts, cond is their weighted combination."""
    channels = x_t.shape[1]
    if weak is not None:
        return weak(x_t, t, condition if negative is None else negative)[:, :channels], denoiser(x_t, t, condition)
    conditions = [negative, *([condition] if weights is None else condition.unbind(1))]
    times = torch.cat([t] * len(conditions)) if t.ndim else t
    uncond, *conds = denoiser(torch.cat([x_t] * len(conditions)), times, torch.cat(conditions)).chunk(len(conditions))
    uncond, cond = uncond[:, :channels], conds[0]
    if weights is not None:
        mean = (1 - sum(weights)) * uncond
        for weight, each in zip(weights, conds, strict=True):
            mean = mean + weight * each[:, :channels]
        cond = torch.cat([mean, cond[:, channels:]], dim=1)
    return uncond, cond


def _combine(
    rule: Guidance, uncond: Batch, cond: Channels, x_t: Batch, t: Real[Tensor, "*t"], process: NoiseProcess | None
) -> Tensor:
    """The rule, without its interval; a learned variance in `cond` is kept as it is."""
    mean, variance = cond[:, : x_t.shape[1]], cond[:, x_t.shape[1] :]
    if rule.zero_star:
        velocities = (_to_velocity(each, x_t, t, process) for each in (uncond, mean))
        uncond = _from_velocity(projected(*velocities), x_t, t, process)
    guided = uncond + rule.scale * (mean - uncond)
    if rule.rescale:
        guided = rescaled(guided, mean, rule.rescale)
    return torch.cat([guided, variance], dim=1) if variance.shape[1] else guided


def projected(uncond: Batch, cond: Batch) -> Batch:
    """s uncond, with the s of each sample that brings it nearest to `cond`: s = <cond, uncond> / |uncond|^2."""
    flat, target = (_at_least_float32(each).flatten(1) for each in (uncond, cond))
    scale = (flat * target).sum(1) / flat.square().sum(1).clamp(min=1e-12)
    return expand_to(scale, uncond) * uncond


def rescaled(guided: Batch, cond: Batch, fraction: float) -> Batch:
    """`guided` with each sample's standard deviation brought towards that of `cond`, `fraction` of the way."""
    dims = tuple(range(1, guided.ndim))
    target, std = (_at_least_float32(each).std(dims, correction=0, keepdim=True) for each in (cond, guided))
    ratio = (target / std).where(std > 0, 1.0)  # a sample of one number has no standard deviation
    return guided * (fraction * ratio + (1 - fraction)).to(guided.dtype)


def _at_least_float32(values: Tensor) -> Tensor:
    """For sums over a whole sample."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _zero_init(rule: Guidance, prediction: Channels, x_t: Batch, t: Times, process: NoiseProcess | None) -> Tensor:
    """The prediction with velocity 0 at the times of zero-init; a learned variance is kept as it is."""
    held = t > 1 - rule.zero_init + EDGE
    if not held.any():
        return prediction
    mean, variance = prediction[:, : x_t.shape[1]], prediction[:, x_t.shape[1] :]
    still = _from_velocity(torch.zeros_like(mean), x_t, t, process)
    mean = _where(held, still, mean)
    return torch.cat([mean, variance], dim=1) if variance.shape[1] else mean


def _where(chosen: Bool[Tensor, "*t"], these: Tensor, others: Tensor) -> Tensor:
    """`these` (B, ...) where `chosen`, (B,) or () for all, else `others`."""
    if not chosen.ndim:
        return these if chosen else others
    return these.where(expand_to(chosen, these).bool(), others)


def _to_velocity(prediction: Batch, x_t: Batch, t: Times, process: NoiseProcess | None) -> Batch:
    if process is None or process.prediction_type == "flow":
        return prediction
    return convert(prediction, x_t, *_scales(process, x_t, t), process.prediction_type, "flow")


def _from_velocity(velocity: Batch, x_t: Batch, t: Times, process: NoiseProcess | None) -> Batch:
    if process is None or process.prediction_type == "flow":
        return velocity
    return convert(velocity, x_t, *_scales(process, x_t, t), "flow", process.prediction_type)


def _scales(process: NoiseProcess, x_t: Batch, t: Times) -> tuple[Tensor, Tensor]:
    """alpha and sigma of the network's input."""
    input_scale = process.schedule.input_scale(t)
    alpha, sigma = process.scales(t)
    return expand_to(input_scale * alpha, x_t), expand_to(input_scale * sigma, x_t)
