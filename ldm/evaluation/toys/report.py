"""`ldm evaluate` of a model of points, whose density is known: how far is the model from the data distribution?

Two fresh sets of data are not at sliced Wasserstein distance 0, so what counts is the ratio: mean distance of the
model's sets to fresh sets, over the mean distance of fresh sets to each other. A perfect model has ratio 1. The spread
beside it is between the model's sets.

Everything here is a function of the seed: fresh set j is drawn from (seed, j), point i of the model's set k is
generated from `seed + k n + i`.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.config.settings import DataOptions
from ldm.data.toy import Toy, caption_for, splits, toy_named
from ldm.diffusion.likelihood import log_likelihood
from ldm.evaluation.metrics.proportions import proportion
from ldm.evaluation.metrics.sliced_wasserstein import distance, projected
from ldm.evaluation.options import EvaluationOptions, word_table, write_metrics
from ldm.models.latents import from_model_latents
from ldm.pipelines.diffusers_schedulers import process_of
from ldm.pipelines.generation import SamplingOptions, generate_images
from ldm.pipelines.loading import load_pipeline
from ldm.pipelines.pipeline import Pipeline
from ldm.utils.errors import UserError
from ldm.utils.terminal import Parts
from ldm.utils.untrusted_files import read_yaml

FAR = (
    4.0  # standard deviations from the mean of a mode beyond which a point is in no mode: 1 of 3,000 data points in 2-D
)


@dataclass(frozen=True)
class Plan:
    """What is generated."""

    samples: int = 20_000  # points in a set
    sets: int = 5  # of the model
    fresh: int = 20  # sets of data
    directions: int = 128
    likelihoods: int = 1000  # validation points of which the model's own density is computed
    seed: int = 0
    sampling: SamplingOptions = SamplingOptions(batch_size=4096)

    def as_json(self) -> dict:
        """What decides the points; the batch size does not."""
        numbers = {
            name: getattr(self, name) for name in ("samples", "sets", "fresh", "directions", "likelihoods", "seed")
        }
        return numbers | self.sampling.as_json()


def evaluate_toy(run: Path, options: EvaluationOptions) -> dict:
    """Measure the model of an LDM run on points; print its summary; write metrics.json.

    Args:
        run: the run's folder, whose config.yaml names the toy.
        options: `samples` is the number of points in a set.
    Returns: the metrics; "summary" has those that count.
    """
    data = DataOptions.model_validate(read_yaml(run / "config.yaml")["data"])
    sampling = replace(options.sampling, batch_size=4096)
    plan = Plan(samples=options.samples, seed=options.seed, sampling=sampling)
    pipeline, toy = load_pipeline(run, device=options.device), toy_named(data.toy.name)
    classes = toy.parts if data.toy.captions else ()
    with Parts(parts_of(plan, classes)) as parts:
        metrics = measure(pipeline, toy, plan, data.toy.captions, parts.begin)
        points = torch.from_numpy(splits(data)["validation"].points[: plan.likelihoods])
        parts.begin("likelihood")
        metrics["likelihood"] = likelihood_section(pipeline, toy, points)
    metrics = {"toy": data.toy.name, "summary": quoted(metrics)} | metrics
    options.output.mkdir(parents=True, exist_ok=True)
    write_metrics(metrics, options.output)
    print(word_table(rows(metrics["summary"])))
    return metrics


def parts_of(plan: Plan, classes: Sequence[str]) -> dict[str, float]:
    """The parts of the work, as progress tells of them, with the number of points; 0 = none are generated."""
    parts: dict[str, float] = {f"set {k + 1} of the model's points": plan.samples for k in range(plan.sets)}
    if classes:
        parts["points of each mode"] = plan.samples
    return parts | {"distances": 0.0, "likelihood": 0.0}


def measure(
    pipeline: Pipeline,
    toy: Toy,
    plan: Plan,
    captions: bool = False,
    begin: Callable[[str], None] = lambda part: None,
) -> dict[str, Any]:
    """All numbers as a dict fit for JSON; `captions`: whether the model knows the modes by name.

    `begin`: is told which of the `parts_of` it begins.
    """
    started, sets = time.monotonic(), []
    for k in range(plan.sets):
        begin(f"set {k + 1} of the model's points")
        sets.append(generate_points(pipeline, "", plan, plan.seed + k * plan.samples))
    seconds = (time.monotonic() - started) / plan.sets
    fresh = [fresh_points(toy, plan, j) for j in range(plan.fresh)]
    if sets[0].shape[1] != toy.dims:
        raise UserError(f"the model generates points of {sets[0].shape[1]} numbers, the toy has {toy.dims}")
    begin("distances")
    metrics: dict[str, Any] = {
        "plan": plan.as_json() | {"defaults": pipeline.defaults},
        "seconds_per_set": round(seconds, 2),
        "distance": distance_section(sets, fresh, plan.directions),
        "nll": {name: nll(toy, points) for name, points in (("model", sets), ("true", fresh))},
        "moments": {name: moments(points) for name, points in (("model", sets), ("true", fresh))},
    }
    if toy.parts:
        metrics["modes"] = mode_section(toy, torch.cat(sets))
    if captions:
        begin("points of each mode")
        metrics["classes"] = class_section(pipeline, toy, plan)
    metrics["seconds"] = round(time.monotonic() - started)
    return metrics


def generate_points(pipeline: Pipeline, prompt: str, plan: Plan, seed: int, count: int | None = None) -> Tensor:
    """The model's points, float64 (n, d)."""
    latents = generate_images(
        pipeline,
        prompt,
        num_images_per_prompt=plan.samples if count is None else count,
        seed=seed,
        num_inference_steps=plan.sampling.steps,
        guidance_scale=plan.sampling.guidance,
        guidance_interval=plan.sampling.interval,
        batch_size=plan.sampling.batch_size,
        output_type="latent",
    )
    return from_model_latents(latents.cpu().double().flatten(1), pipeline.networks.config("vae"))


def fresh_points(toy: Toy, plan: Plan, index: int) -> Tensor:
    """A set of data, float64 (n, d), that nothing was trained on."""
    return torch.from_numpy(toy.sample(plan.samples, np.random.default_rng([plan.seed, 1, index])))


# ---- distance -------------------------------------------------------------------------------------------------------


def distance_section(sets: list[Tensor], fresh: list[Tensor], count: int) -> dict[str, dict]:
    """For p = 1 and 2: the model's mean distance to fresh sets, fresh sets' to each other, their ratio and spread."""
    ours, true = ([projected(points, count) for points in some] for some in (sets, fresh))
    section = {}
    for p in (1, 2):
        base = [distance(a, b, p) for i, a in enumerate(true) for b in true[:i]]
        each = [float(np.mean([distance(a, b, p) for b in true])) for a in ours]
        section[f"W{p}"] = {
            "model": _round(np.mean(each)),
            "fresh": _round(np.mean(base)),
            "ratio": _round(np.mean(each) / np.mean(base)),
            "ratio_spread": _round(np.std(each) / np.mean(base)),
            "fresh_spread": _round(np.std(base) / np.mean(base)),  # between pairs of fresh sets
        }
    return section


# ---- density and moments --------------------------------------------------------------------------------------------


def nll(toy: Toy, sets: list[Tensor]) -> dict[str, float]:
    """Mean of -ln p(x) under the true density, in nats, and its standard error. Of data it is the entropy."""
    values = -torch.cat([toy.log_density(points) for points in sets])
    return {"nats": _round(values.mean()), "error": _round(values.std() / math.sqrt(len(values)))}


def moments(sets: list[Tensor]) -> dict[str, list[float]]:
    """Mean and standard deviation of each axis: on a line also the maximum-likelihood Gaussian."""
    points = torch.cat(sets)
    return {
        "mean": [_round(m) for m in points.mean(0)],
        "std": [_round(s) for s in points.std(0, correction=0)],
    }


def likelihood_section(pipeline: Pipeline, toy: Toy, points: Tensor) -> dict[str, float]:
    """The model's own -ln p(x) by its probability-flow ODE, the true one, and their mean difference, in nats.

    That difference estimates KL(data || model): 0 for a perfect model; its standard error is that of the pairs.
    """
    ours = -log_likelihood(denoiser_of(pipeline), points[..., None, None], process_of(pipeline.scheduler).schedule, 40)
    true = -toy.log_density(points.double())
    gap = ours - true
    return {
        "points": len(points),
        "model": _round(ours.mean()),
        "true": _round(true.mean()),
        "gap": _round(gap.mean()),
        "gap_error": _round(gap.std() / math.sqrt(len(gap))),
    }


def denoiser_of(pipeline: Pipeline) -> Callable:
    """The network as denoise(x_t (n, d, 1, 1), t) -> x0_hat in float64, without prompt or guidance."""
    return pipeline.denoiser("")


# ---- modes ----------------------------------------------------------------------------------------------------------


def modes_of(toy: Toy, points: Tensor) -> Tensor:
    """The mode each point lies in, int64 (n,): the most probable, or -1 where even that is `FAR` off."""
    nearest = toy.responsibilities(points).argmax(1)
    means = torch.from_numpy(toy.means)[nearest]
    deviations = torch.from_numpy(np.broadcast_to(toy.variances, toy.means.shape).copy()).sqrt()[nearest]
    off = ((points - means) / deviations).norm(dim=1)
    return torch.where(off < FAR, nearest, -1)


def mode_section(toy: Toy, points: Tensor) -> dict[str, Any]:
    """Fraction of points in each mode beside its weight; a mode is covered if it has half of what it should have."""
    modes = modes_of(toy, points)
    fractions = [(modes == k).double().mean().item() for k in range(len(toy.parts))]
    errors = [100 * (s - w) for s, w in zip(fractions, toy.weights, strict=True)]
    return {
        "shares": {part: _round(s) for part, s in zip(toy.parts, fractions, strict=True)},
        "weights": {part: _round(w) for part, w in zip(toy.parts, toy.weights, strict=True)},
        "covered": sum(s > w / 2 for s, w in zip(fractions, toy.weights.tolist(), strict=True)),
        "worst_points": _round(max(map(abs, errors))),
        "in_no_mode": _round((modes == -1).double().mean()),
    }


def class_section(pipeline: Pipeline, toy: Toy, plan: Plan) -> dict[str, Any]:
    """How often a point generated for the name of a mode lies in it."""
    count = max(1, plan.samples // len(toy.parts))
    section: dict[str, Any] = {"per_class": {}}
    hits = []
    for k, part in enumerate(toy.parts):
        points = generate_points(pipeline, caption_for(part), plan, plan.seed + k * count, count)
        correct = (modes_of(toy, points) == k).numpy()
        section["per_class"][caption_for(part)] = proportion(correct)
        hits.append(correct)
    return section | {"accuracy": proportion(np.concatenate(hits))}


# ---- the numbers that count -----------------------------------------------------------------------------------------


def quoted(metrics: dict) -> dict[str, Any]:
    """The few numbers that are quoted."""
    plan, distances = metrics["plan"], metrics["distance"]
    found: dict[str, Any] = {
        "drawn": f"{plan['sets']} sets of {plan['samples']} points from seed {plan['seed']} on, "
        f"{plan['steps'] or plan['defaults']['num_inference_steps']} steps, no prompt",
        "sliced_wasserstein_ratio": {name: entry["ratio"] for name, entry in distances.items()},
        "spread_between_sets": {name: entry["ratio_spread"] for name, entry in distances.items()},
        "nll_of_samples": metrics["nll"]["model"]["nats"],
        "nll_of_data": metrics["nll"]["true"]["nats"],
    }
    if likelihood := metrics.get("likelihood"):
        found["model_nll_of_data_less_the_true_one"] = [likelihood["gap"], likelihood["gap_error"]]
    if modes := metrics.get("modes"):
        found["modes_covered"] = f"{modes['covered']} of {len(modes['shares'])}"
        found["worst_weight_error_in_points"] = modes["worst_points"]
    if classes := metrics.get("classes"):
        found["in_the_named_mode"] = classes["accuracy"]["share"]
        found["in_the_named_mode_worst_class"] = min(entry["share"] for entry in classes["per_class"].values())
    return found


def rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers that are quoted, in words."""
    spread = summary["spread_between_sets"]
    found = [("generated", summary["drawn"])]
    for name, ratio in summary["sliced_wasserstein_ratio"].items():
        found.append(
            (
                f"distance to data ({name}); lower is better, two sets of real data have 1",
                f"{ratio:.2f} ± {spread[name]:.2f}",
            )
        )
    nll = f"{summary['nll_of_samples']:.3f} nats, real data {summary['nll_of_data']:.3f}"
    found.append(("negative log-likelihood of samples under the data", nll))
    if "model_nll_of_data_less_the_true_one" in summary:
        gap, error = summary["model_nll_of_data_less_the_true_one"]
        found.append(
            ("the same of data under the model, above the true one; 0 is best", f"{gap:.4f} ± {error:.4f} nats")
        )
    if "modes_covered" in summary:
        worst = f"largest error of a weight {summary['worst_weight_error_in_points']:.2f} points"
        found.append(("modes covered", f"{summary['modes_covered']}, {worst}"))
    if "in_the_named_mode" in summary:
        worst = summary["in_the_named_mode_worst_class"]
        found.append(("in the mode that the prompt names", f"{summary['in_the_named_mode']:.1%}, worst {worst:.1%}"))
    return found


def _round(value) -> float:
    return round(float(value), 6)
