"""Guidance as a wrapper around any denoiser, so that every sampler gets it unchanged.

    prediction = away + scale (toward - away)

`toward` is told the prompt. `away` is told nothing (the null caption) or what to avoid (a negative prompt): that is
classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, with scale = 1 + w in the paper's letters). Or it is a
weaker network told the same prompt: autoguidance (Karras et al. 2024, arXiv 2406.02507). Scale 1 is off.

The rule is linear, so at one (x_t, t) it is the same for eps, v, x0, score and flow velocity. Of the refinements in
`Guidance` the interval keeps that. The optimized scale and zero-init are about velocities, and other predictions are
taken there and back. The rescale acts on what the network predicts, as in its paper and in stock diffusers.

Several prompts of one picture make one `toward`, away + sum of w_i (toward_i - away): with positive weights all of them
hold (AND), a negative weight leads away from its prompt (NOT), as in composable diffusion (Liu et al. 2022, arXiv
2206.01714, eq. 11, whose weights are scale times ours).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.parameterization import convert
from ldm.diffusion.process import NoiseProcess, rows

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t, t, condition) -> prediction of x_t's shape
EDGE = 1e-6  # times within this of an end of an interval count as inside


@dataclass(frozen=True)
class Guidance:
    """How strongly to guide, when, and in which manner. The default is off.

    Args:
        scale: 1 = off, 0 = the negative (or weak) prediction alone, more than 1 exaggerates the prompt.
        interval: guide only at times first <= t <= last, 0 being data and 1 noise; elsewhere the prompt alone steers,
            at half the cost (Kynkaanniemi et al. 2024, arXiv 2404.07724).
        rescale: 0 to 1, how far to bring each sample's standard deviation back to that of the prompted prediction
            (phi of Lin et al. 2023, arXiv 2305.08891, sec. 3.4).
        zero_star: scale `away` to its projection onto `toward` first, CFG-Zero* (Fan et al. 2025, arXiv 2503.18886).
        zero_init: share of the time, from t = 1 down, in which nothing moves; the same paper's zero-init. Evenly
            spaced steps that start in it are its "first steps": 0.05 is the first of 20.

    Raises: ValueError naming what is out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    zero_star: bool = False
    zero_init: float = 0.0

    def __post_init__(self):
        if not 0 <= self.scale < float("inf"):
            raise ValueError(f"the guidance scale must be a finite number, 0 or more (1 = off), got {self.scale!r}")
        if len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(f"the guidance interval must be two times 0 <= first <= last <= 1, got {self.interval!r}")
        for name in ("rescale", "zero_init"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"guidance {name} must be from 0 to 1, got {getattr(self, name)!r}")

    def inside(self, t: Tensor) -> Tensor:
        """Which times lie in the interval: bool of t's shape."""
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
            learned variance: not guided, the prompted one is kept.
        condition: text states of the prompts, (B, L, D), or with `weights` (B, K, L, D).
        negative: text states to lead away from, (B, L, D), for `weak` where that is given. None = off, or, with
            `weak`, the same as `condition`.
        guidance: the rule, or only its scale.
        weights: of the K prompts that each sample has, any numbers; a weight of 1 on one prompt changes nothing.
        weak: a worse denoiser of the same samples, to lead away from. Not together with `weights`.
        process: the noise process, for the rules about velocities; None = `denoiser` predicts velocities.
        time: gives the time of our convention from what `denoiser` is told; None = it is told that.

    Returns: a callable (x_t (B, ...), t: one for all or (B,)) -> guided prediction (B, ...).
    Raises: ValueError if the two conditions differ in shape, or weights do not fit.
    """
    rule = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    if weights is not None and (weak is not None or negative is None or len(weights) != condition.shape[1]):
        raise ValueError(f"weights {weights!r} need a negative, no weak denoiser and as many prompts for each sample")
    one = condition if weights is None else condition[:, 0]
    if weak is None and negative is not None and negative.shape != one.shape:
        raise ValueError(f"negative must have condition's shape {tuple(one.shape)}, got {tuple(negative.shape)}")
    off = rule.scale == 1 or (negative is None and weak is None)
    everywhere = rule.interval == (0, 1)

    def steered(x_t: Tensor, t: Tensor, ours: Tensor) -> Tensor:
        inside = None if everywhere else rule.inside(ours)
        if weights is None and (off or (inside is not None and not inside.any())):
            return denoiser(x_t, t, condition)
        away, toward = _both(denoiser, weak, x_t, t, condition, negative, weights)
        prediction = _combine(rule, away, toward, x_t, ours, process)
        return prediction if inside is None else prediction.where(rows(inside, x_t).bool(), toward)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        ours = t if time is None else time(t)
        prediction = steered(x_t, t, ours)
        return _hold(rule, prediction, x_t, ours, process) if rule.zero_init else prediction

    return guided


def _both(
    denoiser, weak, x_t: Tensor, t: Tensor, condition: Tensor, negative: Tensor | None, weights: Sequence[float] | None
) -> tuple[Tensor, Tensor]:
    """What to lead away from (no learned variance), and what the prompt gives, or the prompts together."""
    channels = x_t.shape[1]
    if weak is not None:
        return weak(x_t, t, condition if negative is None else negative)[:, :channels], denoiser(x_t, t, condition)
    told = [negative, *([condition] if weights is None else condition.unbind(1))]
    times = torch.cat([t] * len(told)) if t.ndim else t
    away, *towards = denoiser(torch.cat([x_t] * len(told)), times, torch.cat(told)).chunk(len(told))
    away, toward = away[:, :channels], towards[0]
    if weights is not None:
        mean = (1 - sum(weights)) * away
        for weight, each in zip(weights, towards, strict=True):
            mean = mean + weight * each[:, :channels]
        toward = torch.cat([mean, toward[:, channels:]], dim=1)
    return away, toward


def _combine(rule: Guidance, away: Tensor, toward: Tensor, x_t: Tensor, t: Tensor, process) -> Tensor:
    """The rule, without its interval; a learned variance in `toward` stays as it is."""
    mean, variance = toward[:, : x_t.shape[1]], toward[:, x_t.shape[1] :]
    if rule.zero_star:
        away = _from_velocity(projected(*(_to_velocity(p, x_t, t, process) for p in (away, mean))), x_t, t, process)
    guided = away + rule.scale * (mean - away)
    if rule.rescale:
        guided = rescaled(guided, mean, rule.rescale)
    return torch.cat([guided, variance], dim=1) if variance.shape[1] else guided


def projected(away: Tensor, toward: Tensor) -> Tensor:
    """s away, with the s of each sample (B, ...) that brings it nearest to `toward`: s = <toward, away> / |away|^2."""
    flat, target = (_wide(each).flatten(1) for each in (away, toward))
    scale = (flat * target).sum(1) / flat.square().sum(1).clamp(min=1e-12)
    return rows(scale, away) * away


def rescaled(guided: Tensor, toward: Tensor, share: float) -> Tensor:
    """`guided` with each sample's standard deviation brought to that of `toward`, by `share` of the way."""
    over = tuple(range(1, guided.ndim))
    wanted, found = (_wide(each).std(over, correction=0, keepdim=True) for each in (toward, guided))
    ratio = (wanted / found).where(found > 0, 1.0)  # a sample of one number has no standard deviation
    return guided * (share * ratio + (1 - share)).to(guided.dtype)


def _wide(values: Tensor) -> Tensor:
    """At least float32, for sums over a whole sample."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _hold(rule: Guidance, prediction: Tensor, x_t: Tensor, t: Tensor, process) -> Tensor:
    """The prediction with no velocity at the times of zero-init; a learned variance stays as it is."""
    held = t > 1 - rule.zero_init + EDGE
    if not held.any():
        return prediction
    mean, variance = prediction[:, : x_t.shape[1]], prediction[:, x_t.shape[1] :]
    mean = _from_velocity(torch.zeros_like(mean), x_t, t, process).where(rows(held, x_t).bool(), mean)
    return torch.cat([mean, variance], dim=1) if variance.shape[1] else mean


def _to_velocity(prediction: Tensor, x_t: Tensor, t: Tensor, process: NoiseProcess | None) -> Tensor:
    if process is None or process.prediction_type == "flow":
        return prediction
    return convert(prediction, x_t, *_scales(process, x_t, t), process.prediction_type, "flow")


def _from_velocity(velocity: Tensor, x_t: Tensor, t: Tensor, process: NoiseProcess | None) -> Tensor:
    if process is None or process.prediction_type == "flow":
        return velocity
    return convert(velocity, x_t, *_scales(process, x_t, t), "flow", process.prediction_type)


def _scales(process: NoiseProcess, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of what the network sees."""
    seen = process.schedule.input_scale(t)
    alpha, sigma = process.scales(t)
    return rows(seen * alpha, x_t), rows(seen * sigma, x_t)
