"""The denoising loss of a run at every time: of training and of held-out items, beside predictors that know little.

Each item is noised once within each of equal stretches of time, with noise and times from a fixed seed that are the
same for both splits, so that the gap between them is not the noise's. The loss is the plain mean squared error of what
the network predicts, unweighted. Beside it, in closed form, are the losses of predicting zero, of predicting the
target's mean, and of the best linear predictor from x_t that knows the data's mean and variance per channel: a network
above the last has learned nothing of shapes. With the captions of other items, and with empty ones, the same loss tells
what the captions are worth to the network.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data import ImageTextData, evenly_spaced_indices
from ldm.diffusion.parameterization import PREDICTIONS
from ldm.diffusion.process import NoiseProcess
from ldm.evaluation.run_loading import open_run
from ldm.models.latents import posterior, to_model_latents
from ldm.pipelines.pipeline import Pipeline
from ldm.training.data_order import generator_for
from ldm.training.task import SampleRef, captions_of
from ldm.utils.image_tensors import to_images

CAPTIONS = ("own", "shuffled", "empty")  # which captions the network is conditioned on


@dataclass(frozen=True)
class Plan:
    """How much is measured: at most `limit` items of each split, `bins` stretches of time, `batch` items at once."""

    limit: int = 256
    bins: int = 10
    seed: int = 0
    batch: int = 32


@dataclass(frozen=True)
class Items:
    """Some items of a split: model latents (N, c, h, w), float32, and one caption each ('' where there is none)."""

    latents: Tensor
    captions: list[str]


@dataclass(frozen=True)
class Losses:
    """Mean squared errors (N, bins), float64, at the times (N, bins), for each of `CAPTIONS`."""

    times: Tensor
    errors: dict[str, Tensor]


# ---- what knows little ----------------------------------------------------------------------------------------------


def trivial_losses(process: NoiseProcess, t: Tensor, mean: Tensor, variance: Tensor) -> dict[str, Tensor]:
    """Expected squared errors, per element, of three predictors that never saw the data, each of t's shape.

    The target is p = a x0 + b eps and x_t = alpha x0 + sigma eps. 'zero' costs E p^2 = a^2 (v + m^2) + b^2; 'mean', the
    constant a m, costs a^2 v + b^2; 'linear', the best linear function of x_t (Wiener's filter),
    (a sigma - b alpha)^2 v / (alpha^2 v + sigma^2). All three hold for data of any distribution.

    Args:
        t: times in [0, 1], any shape.
        mean, variance: of each channel of the clean data, (c,); the losses are means over channels.
    """
    alpha, sigma = (scale.double().unsqueeze(-1) for scale in process.scales(t))
    a, b = (torch.ones_like(alpha) * each for each in PREDICTIONS[process.prediction_type](alpha, sigma))
    m, v = mean.double(), variance.double()
    return {
        "zero": (a**2 * (v + m**2) + b**2).mean(-1),
        "mean": (a**2 * v + b**2).mean(-1),
        "linear": ((a * sigma - b * alpha) ** 2 * v / (alpha**2 * v + sigma**2).clamp(min=1e-12)).mean(-1),
    }


def channel_moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel, (c,) each, float64, of (N, c, h, w)."""
    values = latents.double().transpose(0, 1).flatten(1)
    return values.mean(1), values.var(1, unbiased=False)


# ---- items ----------------------------------------------------------------------------------------------------------


def pictures(data: ImageTextData, indices: Sequence[int]) -> Tensor:
    """float32 (B, C, H, W): images in [-1, 1], points as images of one pixel."""
    return to_images(np.stack([data.image(int(i)) for i in indices]))


@torch.no_grad()
def choose_items(pipeline: Pipeline, data: ImageTextData, plan: Plan, captions: bool = True) -> Items:
    """Evenly spaced items, encoded by the pipeline's autoencoder (one draw of the posterior, as in training)."""
    chosen, found = evenly_spaced_indices(len(data), plan.limit).tolist(), []
    for start in range(0, len(chosen), plan.batch):
        x = pictures(data, chosen[start : start + plan.batch]).to(pipeline.device, pipeline.vae.dtype)
        encoded = posterior(pipeline.vae, x)
        noise = torch.randn(encoded.mean.shape, generator=generator_for(plan.seed, 20, start)).to(x)
        found.append(to_model_latents(encoded.mean + encoded.std * noise, pipeline.vae.config).float().cpu())
    words = [""] * len(chosen)
    if captions and data.has_captions:
        words = captions_of([(data, SampleRef(i, 0)) for i in chosen], plan.seed)
    return Items(torch.cat(found), words)


def exchanged_captions(captions: list[str]) -> list[str]:
    """The same captions, each at another index: in sorted order, shifted by the largest number of equal ones.

    No item keeps a caption equal to its own unless more than half of all are equal.
    """
    order = sorted(range(len(captions)), key=lambda i: captions[i])
    most = max((captions.count(caption) for caption in set(captions)), default=0)
    result = [""] * len(captions)
    for place, i in enumerate(order):
        result[i] = captions[order[(place + most) % len(order)]]
    return result


# ---- the loss -------------------------------------------------------------------------------------------------------


def bin_edges(process: NoiseProcess, bins: int) -> list[float]:
    """Ends of equal stretches of time, `bins` + 1 numbers from the first time that is trained on to 1."""
    return np.linspace(process.schedule.first_time, 1.0, bins + 1).tolist()


@torch.no_grad()
def denoising_losses(
    pipeline: Pipeline, process: NoiseProcess, items: Items, plan: Plan, captions: Sequence[str] = CAPTIONS
) -> Losses:
    """The network's loss on each item in each stretch of time; the same noise whatever the captions."""
    edges = bin_edges(process, plan.bins)
    words = {"own": items.captions, "shuffled": exchanged_captions(items.captions), "empty": [""] * len(items.captions)}
    states = {name: pipeline.encode_prompt(words[name]) for name in captions}
    times: list[Tensor] = []
    errors: dict[str, list[Tensor]] = {name: [] for name in captions}
    for start in range(0, len(items.latents), plan.batch):
        x0 = items.latents[start : start + plan.batch]
        generator = generator_for(plan.seed, 21, start)
        for first, last in itertools.pairwise(edges):
            t = first + (last - first) * torch.rand(plan.batch, generator=generator)[: len(x0)]
            eps = torch.randn(plan.batch, *x0.shape[1:], generator=generator)[: len(x0)]
            times.append(t)
            for name in captions:
                part = states[name][start : start + plan.batch]
                errors[name].append(_errors(pipeline, process, x0, eps, t, part))
    return Losses(_table(times, plan.bins), {name: _table(found, plan.bins) for name, found in errors.items()})


def _errors(pipeline: Pipeline, process: NoiseProcess, x0: Tensor, eps: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """Mean squared error of each item, (B,), float64."""
    x0, eps, t = (tensor.to(pipeline.device) for tensor in (x0, eps, t))
    x_t = process.corrupt(x0, eps, t)
    network_input = process.network_input(x_t, t).to(pipeline.dtype)
    prediction = pipeline.predictor(states, process=process)(network_input, process.timestep(t)).float()
    if process.learned_variance:
        prediction = prediction.chunk(2, dim=1)[0]
    return (prediction - process.target(x0, eps, t)).double().square().flatten(1).mean(1).cpu()


def _table(parts: list[Tensor], bins: int) -> Tensor:
    """Parts in the order (batch, bin) -> (N, bins)."""
    batches = [torch.stack(parts[i : i + bins], 1) for i in range(0, len(parts), bins)]
    return torch.cat(batches).double()


# ---- numbers --------------------------------------------------------------------------------------------------------


def mean_and_error(values: Tensor) -> dict[str, float]:
    """Mean and its standard error of independent values (N,)."""
    error = values.std() / len(values) ** 0.5 if len(values) > 1 else torch.tensor(float("nan"))
    return {"mean": float(values.mean()), "standard_error": float(error)}


def difference(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    """a - b of two independent means."""
    return {
        "mean": a["mean"] - b["mean"],
        "standard_error": float(np.hypot(a["standard_error"], b["standard_error"])),
    }


def measure_run(run: Path, plan: Plan = Plan(), device: str | None = None) -> dict[str, Any]:
    """Measure a run of `ldm train ldm`, finished or not. Raises: UserError if it is none or its data are not there."""
    opened = open_run(run, device)
    data = opened.data
    captions = opened.settings.text.source != "none"
    return measure(opened.pipeline, opened.process, data.train, data.validation, plan, captions)


def measure(
    pipeline: Pipeline,
    process: NoiseProcess,
    train: ImageTextData,
    validation: ImageTextData,
    plan: Plan,
    captions: bool = True,
) -> dict[str, Any]:
    """All numbers as a dict fit for JSON.

    Returns: "items" (how many of each split), "bins", a list with the stretch ("from", "to"), and "all" over all times
        alike; each with "train", "validation" and "gap" (validation - train), "shuffled" and "empty" (what the loss
        rises by with others' captions and without; both splits pooled, paired by item; absent without captions), all
        as {"mean", "standard_error"}, and "zero", "mean", "linear", see `trivial_losses`, of the same items.
    """
    captions = captions and train.has_captions
    variants = CAPTIONS if captions else CAPTIONS[:1]
    items = [choose_items(pipeline, data, plan, captions) for data in (train, validation)]
    losses = [denoising_losses(pipeline, process, part, plan, variants) for part in items]
    return summarise(process, items, losses, plan)


def summarise(process: NoiseProcess, items: list[Items], losses: list[Losses], plan: Plan) -> dict[str, Any]:
    """The result of `measure` from the losses of the training and of the validation items."""
    edges = bin_edges(process, plan.bins)
    trivial = trivial_losses(process, losses[0].times, *channel_moments(items[0].latents))
    stretches = [
        {"from": edges[k], "to": edges[k + 1], **_numbers(losses, trivial, slice(k, k + 1))} for k in range(plan.bins)
    ]
    return {
        "items": {"train": len(items[0].latents), "validation": len(items[1].latents)},
        "seed": plan.seed,
        "bins": stretches,
        "all": _numbers(losses, trivial, slice(0, plan.bins)),
    }


def _numbers(losses: list[Losses], trivial: dict[str, Tensor], stretch: slice) -> dict[str, Any]:
    """Means over some bins: of each item first, so that the standard error is over items."""
    found: dict[str, Any] = {
        name: mean_and_error(part.errors["own"][:, stretch].mean(1))
        for name, part in zip(("train", "validation"), losses, strict=True)
    }
    found["gap"] = difference(found["validation"], found["train"])
    for name in set(losses[0].errors) - {"own"}:
        rises = [(part.errors[name] - part.errors["own"])[:, stretch].mean(1) for part in losses]
        found[name] = mean_and_error(torch.cat(rises))
    return found | {name: float(values[:, stretch].mean()) for name, values in trivial.items()}
