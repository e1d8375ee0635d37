"""Checks of what the denoiser learned: how long, whether its EMA keeps up, and its loss at every time."""

import json
from pathlib import Path

import numpy as np
import torch

from ldm.evaluation import loss_by_time
from ldm.evaluation.diagnostics.context import RunContext
from ldm.evaluation.diagnostics.findings import Finding, fail, ok, skip, warn
from ldm.evaluation.run_loading import checkpoint_state, holding, network_weights, saved_weights
from ldm.training.validation import exported_from, reason_to_stop

FEWEST_STEPS = 100
LAGS, LAGS_A_LITTLE = 1.25, 1.05  # loss of the EMA weights over that of the raw weights
LEARNED = 0.98  # of the best linear predictor's loss
UNSURE = 2.0  # standard errors
FEWEST_LOSSES = 8  # in a fit
EARLY, RATHER_EARLY = 0.15, 0.05  # of the loss, that twice as many steps would take off


def check_training(context: RunContext) -> Finding:
    """It was trained for more than a moment, and the loss stayed finite."""
    if context.opened is None or context.settings is None:
        runs = context.pipeline.defaults.get("training", {}).get("runs", {})
        steps = runs.get("ldm", {}).get("steps")
        if steps is None:
            return skip("the model does not say how long it was trained")
        return _long_enough(steps, runs["ldm"].get("batch_size"), None, 0)
    entries = _log_entries(context.opened.folder / "log.jsonl")
    lost = [entry["step"] for entry in entries if "loss" in entry and entry["loss"] is None]
    if lost:
        advice = "lower optim.lr, or train.mixed_precision: no, and resume before that step"
        return fail(f"the loss was not finite at step {lost[0]}", advice)
    steps = context.state["step"] if context.state else max((entry["step"] for entry in entries), default=None)
    if steps is None:
        return skip("neither a checkpoint nor log.jsonl says how long it was trained")
    size = len(context.readable.train) if context.readable else None
    finding = _long_enough(steps, context.settings.train.batch_size, size, context.settings.optim.warmup_steps)
    if finding.status == "ok" and (reason := _ended_early(context)):
        return ok(f"{finding.text}; then {reason}")
    if finding.status == "ok" and steps < context.settings.train.num_steps:
        text = f"{finding.text}; {context.settings.train.num_steps} were planned"
        return warn(text, f"start `ldm train {context.stage}` again: it resumes")
    return finding


def _ended_early(context: RunContext) -> str | None:
    """Why validation ended the training before its last step; None if it did not."""
    if context.state is None or context.settings is None:
        return None
    return reason_to_stop(context.state.get("validations", []), context.settings)


def _log_entries(path: Path) -> list[dict]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def _long_enough(steps: int, batch: int | None, size: int | None, warmup: int) -> Finding:
    text = f"{steps} steps"
    if batch:
        text += f", {steps * batch} samples seen"
    if batch and size:
        text += f", {steps * batch / size:.3g} times the data"
    if steps < max(FEWEST_STEPS, warmup):
        advice = "raise train.num_steps (thousands for images) and start the training again: it resumes"
        return fail(f"only {text} (warm-up alone: {warmup})", advice)
    return ok(text)


def check_progress(context: RunContext) -> Finding:
    """The loss hardly falls any more: twice as many steps would gain little."""
    if context.opened is None:
        return skip("an exported model has no log")
    if reason := _ended_early(context):
        return ok(f"validation ended the training: {reason}")
    found = loss_exponent(_log_entries(context.opened.folder / "log.jsonl"))
    if found is None:
        return ok(f"fewer than {FEWEST_LOSSES} logged losses: whether the loss still falls cannot be said")
    exponent, error = found
    gain, least = (1 - 2**-value for value in (exponent, exponent - UNSURE * error))
    text = f"the loss falls as steps^-{max(0, exponent):.2g}: twice as many would lower it by {max(0, gain):.0%}"
    advice = f"raise train.num_steps and start `ldm train {context.stage}` again: it resumes"
    if least > EARLY:
        return fail(f"stopped too early: {text}", advice)
    return warn(text, advice) if least > RATHER_EARLY else ok(text)


def loss_exponent(entries: list[dict]) -> tuple[float, float] | None:
    """a of loss ~ step^-a over the last half of a log's steps, by least squares of logarithms, and its standard error.

    What falls while the learning rate decays is left out, unless it decays for most of the training.
    Returns: None for fewer than FEWEST_LOSSES losses.
    """
    rows = [row for row in entries if row.get("loss") and row["loss"] > 0 and row["step"] > 0]
    full = [row for row in rows if row.get("lr", 0) >= 0.99 * max(each.get("lr", 0) for each in rows)]
    rows = full if 2 * len(full) > len(rows) else rows
    rows = [row for row in rows if row["step"] >= rows[-1]["step"] / 2]
    if len(rows) < FEWEST_LOSSES:
        return None
    x, y = (np.log([row[name] for row in rows]) for name in ("step", "loss"))
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    return -slope, float(((y - y.mean() - slope * x) ** 2).sum() / (len(x) - 2) / (x @ x)) ** 0.5


def check_ema(context: RunContext) -> Finding:
    """The EMA weights, which are used for sampling, are not far behind the raw ones."""
    opened, settings = context.opened, context.settings
    if opened is None or settings is None or opened.checkpoint is None:
        return skip("there is no checkpoint with raw weights to compare with")
    decay = settings.train.ema_decay
    if not decay:
        return ok("none (train.ema_decay 0): the raw weights are used")
    if settings.start.lora_rank:
        return skip("a run of adapters keeps them apart from the weights that they are added to")
    source = opened.checkpoint if context.pipeline.folder is None else exported_from(opened.checkpoint)
    raw, ema = (saved_weights(source, kind) for kind in ("raw", "ema"))
    own = network_weights(context.pipeline)
    if raw.keys() - own.keys() or any(not torch.equal(own[name].cpu(), ema[name]) for name in ema):
        text = f"final/ does not hold the EMA of {source.name}"
        advice = "if that was not meant: remove final/ and start `ldm train ldm` again, which writes it again"
        return warn(text, advice)
    ours = _loss(context)
    with holding(context.pipeline, raw):
        theirs = _loss(context)
    behind = loss_by_time.mean_and_error(ours - theirs)
    ratio = (ours.mean() / theirs.mean()).item()
    text = f"loss {ours.mean():.4g} with the EMA weights, {theirs.mean():.4g} with the raw weights (ema_decay {decay})"
    sure = behind["mean"] > UNSURE * behind["standard_error"]
    step = checkpoint_state(source)["step"]
    advice = f"lower train.ema_decay (it averages {1 / (1 - decay):.0f} of the {step} steps), or train longer"
    if ratio > LAGS and sure:
        return fail(f"{text}: the EMA lags behind", advice)
    if ratio > LAGS_A_LITTLE and sure:
        return warn(text, advice)
    return ok(text)


def _loss(context: RunContext):
    """The loss of each training item over all times, (N,)."""
    found = loss_by_time.denoising_losses(context.pipeline, context.process, context.items[0], context.plan, ("own",))
    return found.errors["own"].mean(1)


def check_loss(context: RunContext) -> Finding:
    """At no time is the network worse than knowing nothing, and over all it is better than the best linear filter."""
    found, overall = context.losses, context.losses["all"]
    ours = overall["train"]["mean"]
    text = (
        f"{ours:.4g} on training items (predicting the mean {overall['mean']:.4g}, best linear filter "
        f"{overall['linear']:.4g})"
    )
    advice = "the denoiser has not learned these latents: train longer, raise optim.lr, or use its own VAE and process"
    if not ours < LEARNED * overall["linear"]:
        return fail(f"{text}: no better than knowing nothing of shapes", advice)
    for row in found["bins"]:
        mean, error = row["train"]["mean"], row["train"]["standard_error"]
        if mean - 3 * error > 1.1 * row["mean"]:
            stretch = f"at times {row['from']:.2f} to {row['to']:.2f} it is {mean:.4g}, the mean's {row['mean']:.4g}"
            more = "noise.timesteps: uniform, so that these times are trained on; or " + advice
            return fail(f"{text}, but {stretch}", more)
    if ours > 0.9 * overall["linear"]:
        return warn(f"{text}: hardly better", advice)
    return ok(text)


def check_gap(context: RunContext) -> Finding:
    """Held-out items are not much harder than training items."""
    found = context.losses["all"]
    gap, train = found["gap"], found["train"]["mean"]
    text = (
        f"validation {found['validation']['mean']:.4g}, training {train:.4g}: gap {gap['mean']:.3g} "
        f"+- {gap['standard_error']:.2g}"
    )
    if gap["mean"] > 3 * gap["standard_error"] and gap["mean"] > 0.25 * train:
        return warn(f"{text}: it overfits", "more data, a smaller model, or fewer steps")
    return ok(text)


def check_conditioning(context: RunContext) -> Finding:
    """The loss rises when captions are exchanged."""
    if context.unconditional:
        return ok("none wanted (text.source: none)")
    found = context.losses["all"]
    rise, without, own = found["shuffled"], found["empty"], found["train"]["mean"]
    text = (
        f"the loss rises by {rise['mean']:.3g} +- {rise['standard_error']:.2g} with others' captions "
        f"({rise['mean'] / own:.1%}), by {without['mean']:.3g} +- {without['standard_error']:.2g} without any"
    )
    advice = (
        "see that captions belong to their images, caption_dropout is about 0.1 and attention_levels is not empty; "
        "then train longer"
    )
    if rise["mean"] < UNSURE * rise["standard_error"]:
        return fail(f"{text}: the captions are not used", advice)
    if rise["mean"] < 0.002 * own:
        return warn(text, advice)
    return ok(text)
