"""How probable held-out data are under a finished run: the measurements behind `ldm likelihood`.

Points are measured in nats per point, images in bits per dimension (of 256 grey levels). A latent model's bound has
three parts: what the decoder does not say of the image, what q(z | x) does say of z, and the diffusion bound of z.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.config.loading import load
from ldm.data import ImageTextData, build, evenly_spaced_indices, is_points
from ldm.data.buckets import at_one_size
from ldm.data.toy import ToyData
from ldm.diffusion.likelihood import Bound, bits_per_dim, dequantise, log_likelihood, squared_errors, variational_bound
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.sampling import Denoise
from ldm.evaluation.latent_likelihood import Encoding, decoder_std, encode
from ldm.models.identity_autoencoder import IdentityAutoencoder
from ldm.models.latents import is_tiny, is_vector_quantized
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.pipeline import Pipeline
from ldm.utils.errors import UserError
from ldm.utils.image_tensors import to_images

BINS = 10
SMALL = 16  # up to so many dimensions the trace is taken exactly


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes: limit, items of the test split; steps of the chain and intervals of the ODE, None = 1000 and 100 for
    points, 100 and 40 for images; variance, see `variational_bound`, None = the network's own where it has learned
    one, else the best, from the errors on as many training items; exact, also by the ODE; captions, whether the model
    is conditioned on each item's caption; seed; batch.
    """

    limit: int = 256
    steps: int | None = None
    ode_steps: int | None = None
    variance: str | None = None
    exact: bool = False
    captions: bool = True
    seed: int = 0
    batch: int = 64


@dataclass(frozen=True)
class Items:
    """Some of a data set in the model's space: images or points x, what is diffused z, text states (B or 1, L, D)."""

    x: Tensor
    z: Tensor
    states: Tensor
    parts: Encoding | None  # of a latent model


def likelihood_of_run(run: Path, plan: Plan, device: str | None = None) -> dict[str, Any]:
    """Measure a finished LDM run on its own test split. Raises: UserError if it is none, or has no density."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} has no config.yaml: name a finished run of `ldm train ldm`, such as runs/<name>/ldm")
    settings = load("ldm", run / "config.yaml")
    splits = at_one_size(build(settings.data))
    process = NoiseProcess(**settings.noise.model_dump())
    test = splits.validation if splits.test is None else splits.test
    return measure(load_pipeline(run, device=device), process, splits.train, test, plan)


def measure(
    pipeline: Pipeline, process: NoiseProcess, train: ImageTextData, test: ImageTextData, plan: Plan
) -> dict[str, Any]:
    """All numbers as a dict fit for JSON; the seed of torch's own generator is set."""
    torch.manual_seed(plan.seed)
    if is_tiny(pipeline.vae.config):
        raise UserError("a model over an AutoencoderTiny gives no density: its encoder has no posterior to decode from")
    if is_vector_quantized(pipeline.vae.config):
        raise UserError("a model over a VQ autoencoder gives no density: its latents are codes, not noised numbers")
    points = is_points(test)
    latent = not isinstance(pipeline.vae, IdentityAutoencoder)
    if latent and test.channels == 4:
        raise UserError("a latent model of transparent images gives no density: colours that nobody sees have none")
    own, ode = (1000, 100) if points else (100, 40)
    own, ode = plan.steps or own, plan.ode_steps or ode
    std = decoder_std(pipeline.vae, _pictures(train, plan.limit, pipeline)) if latent else None
    items, kind = (
        _items(pipeline, test, plan, std),
        plan.variance or ("learned" if process.learned_variance else "optimal"),
    )
    errors = _errors(pipeline, process, _items(pipeline, train, plan, std), own, plan) if kind == "optimal" else None
    bound = _bound(pipeline, process, items, own, kind, errors, discrete=not (points or latent), plan=plan)
    found = {
        "space": "points" if points else "latents" if latent else "pixels",
        "items": len(items.x),
        "dims": items.x[0].numel(),
        "latent_dims": items.z[0].numel(),
        "captions": plan.captions and test.has_captions,
        "steps": own,
        "variance": kind,
        "decoder_std": std,
    }
    found["terms"] = _terms(bound, items.z[0].numel(), items.parts)
    found["bound"] = _summary(bound.total * items.z[0].numel() - _encoded(items), found, discrete=not points)
    if plan.exact:
        exact = _exact(pipeline, process, items, ode, plan, spread_out=not (points or latent))
        found["exact"] = _summary(-exact - _encoded(items), found, discrete=latent)
    if isinstance(test, ToyData):
        found["truth"] = _truth(test, items.x.flatten(1), found["captions"], plan)
    return found


def model_denoise(pipeline: Pipeline, process: NoiseProcess, states: Tensor) -> Denoise:
    """The denoise function of a pipeline's network for `states` (B or 1, L, D), without guidance; float64 outside."""
    return pipeline.denoiser(states, process=process)


# ---- data -----------------------------------------------------------------------------------------------------------


def _pictures(data: ImageTextData, limit: int, pipeline: Pipeline) -> Tensor:
    """Evenly spaced items as the model takes them: float32 (B, C, H, W), images in [-1, 1] or points of one pixel."""
    chosen = np.stack([data.image(int(i)) for i in evenly_spaced_indices(len(data), limit)])
    return to_images(chosen).to(pipeline.device)


@torch.no_grad()
def _items(pipeline: Pipeline, data: ImageTextData, plan: Plan, std: float | None) -> Items:
    x = _pictures(data, plan.limit, pipeline)
    captions = [""]
    if plan.captions and data.has_captions:
        chosen = evenly_spaced_indices(len(data), plan.limit).tolist()
        captions = [data.caption(i, np.random.default_rng([plan.seed, i])) for i in chosen]
    states = pipeline.encode_prompt(captions)
    if std is None:
        return Items(x, x.double(), states, None)
    encoded = [encode(pipeline.vae, part, std) for part in x.split(plan.batch)]
    parts = Encoding(*(torch.cat(each) for each in zip(*((e.latents, e.log_decoder, e.surprise) for e in encoded))))
    return Items(x, parts.latents, states, parts)


def _batches(items: Items, size: int):
    """(z, states) some at a time."""
    for start in range(0, len(items.z), size):
        states = items.states if len(items.states) == 1 else items.states[start : start + size]
        yield items.z[start : start + size], states


# ---- the two measures -----------------------------------------------------------------------------------------------


def _errors(pipeline: Pipeline, process: NoiseProcess, items: Items, steps: int, plan: Plan) -> Tensor:
    found = [
        squared_errors(model_denoise(pipeline, process, states), z, process.schedule, steps) * len(z)
        for z, states in _batches(items, _batch(items, plan))
    ]
    return torch.stack(found).sum(0).cpu() / len(items.z)


def _bound(pipeline, process, items: Items, steps: int, kind: str, errors, discrete: bool, plan: Plan) -> Bound:
    parts = [
        variational_bound(model_denoise(pipeline, process, states), z, process.schedule, steps, kind, errors, discrete)
        for z, states in _batches(items, _batch(items, plan))
    ]
    steps_, priors = (torch.cat([getattr(part, name) for part in parts], dim=-1).cpu() for name in ("steps", "prior"))
    return Bound(parts[0].times, steps_, priors)


def _exact(pipeline, process, items: Items, steps: int, plan: Plan, spread_out: bool) -> Tensor:
    """ln p(z), (B,); pixels are spread over their bins first."""
    probes = None if items.z[0].numel() <= SMALL else 1
    found = []
    for z, states in _batches(items, _batch(items, plan)):
        denoise = model_denoise(pipeline, process, states)
        found.append(
            log_likelihood(denoise, dequantise(z) if spread_out else z, process.schedule, steps, probes=probes)
        )
    return torch.cat(found).cpu()


def _batch(items: Items, plan: Plan) -> int:
    return 16 * plan.batch if items.z[0].numel() <= SMALL else plan.batch


def _encoded(items: Items) -> Tensor:
    """ln p(x | z) - ln q(z | x), (B,); 0 without an autoencoder."""
    if items.parts is None:
        return torch.zeros(len(items.x), dtype=torch.float64)
    return (items.parts.log_decoder + items.parts.surprise).cpu()


def _truth(test: Any, points: Tensor, conditional: bool, plan: Plan) -> float:
    """-ln p of the same points under the true density."""
    points = points.double().cpu()
    if not conditional:
        return float(-test.toy.log_density(points).mean())
    labels = [int(test.labels[i]) for i in evenly_spaced_indices(len(test), plan.limit)]
    found = [test.toy.part(label).log_density(point[None]) for label, point in zip(labels, points, strict=True)]
    return float(-torch.cat(found).mean())


# ---- numbers --------------------------------------------------------------------------------------------------------


def _terms(bound: Bound, dims: int, parts: Encoding | None) -> list[dict[str, Any]]:
    """The bound's parts in nats per item: the autoencoder, the last step, equal stretches of time, and the prior."""
    nats = bound.steps.mean(1) * dims
    found = []
    if parts is not None:
        found.append({"what": "-ln p(x | z)", "nats": -float(parts.log_decoder.mean())})
        found.append({"what": "ln q(z | x)", "nats": -float(parts.surprise.mean())})
    found.append({"what": "-ln p(x0 | x_t)", "from": 0.0, "to": float(bound.times[0]), "nats": float(nats[0])})
    edges = np.linspace(1, len(nats), min(BINS, len(nats) - 1) + 1).round().astype(int)
    for a, b in itertools.pairwise(edges):
        stretch = {"from": float(bound.times[a - 1]), "to": float(bound.times[b - 1])}
        found.append({"what": "steps", **stretch, "nats": float(nats[a:b].sum())})
    return [*found, {"what": "prior", "nats": float(bound.prior.mean()) * dims}]


def _summary(nats: Tensor, found: dict[str, Any], discrete: bool) -> dict[str, float]:
    """Mean of -ln p(x) over the items, its standard error, and bits per dimension for images."""
    error = float(nats.std() / math.sqrt(len(nats))) if len(nats) > 1 else math.nan
    result = {"nats": float(nats.mean()), "standard_error": error}
    if found["space"] != "points":
        result["bits_per_dim"] = float(bits_per_dim(nats.mean() / found["dims"], discrete))
        result["bits_standard_error"] = error / found["dims"] / math.log(2)
    return result
