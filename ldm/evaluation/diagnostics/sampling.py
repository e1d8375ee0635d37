"""Checks of drawing: where the noise process ends, whose process the scheduler takes, its steps, and guidance."""

import math

import torch
from torch import Tensor

from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.schedules import DiscreteVP
from ldm.evaluation.diagnostics.context import Case
from ldm.evaluation.diagnostics.findings import Finding
from ldm.evaluation.loss_by_time import channel_moments
from ldm.models.latents import from_model_latents
from ldm.pipelines.diffusers_schedulers import export_scheduler, process_of

LEFT, LEFT_A_LITTLE = 4.0, 1.0  # signal to noise of the picture's mean at t = 1
SIGNAL_LEFT = 0.2  # alpha / sigma at t = 1
OTHER_PROCESS = 0.1  # difference of ln(snr) at one timestep
FINE_STEPS, COMPARED = 200, 8  # of the reference: steps and pictures
COARSE, RATHER_COARSE = 0.4, 0.2  # of the deviation of what fine steps draw
SPREAD, DOUBTFUL_SPREAD = 2.0, 1.4  # of drawn latents against the data's, and back
OFF_CENTRE, DOUBTFUL_CENTRE = 1.0, 0.5
STRETCHED, STRETCHED_A_LITTLE = 2.0, 1.4  # deviation of guided latents over unguided ones
CLIPPED = 0.25  # share of values more than without guidance


def check_schedule(case: Case) -> Finding:
    """Drawing starts at pure noise; training's last time must not show more than that."""
    process = case.process
    alpha, sigma = (float(scale) for scale in process.scales(torch.ones((), dtype=torch.float64)))
    if not isinstance(process.schedule, DiscreteVP):
        text = f"at t = 1 alpha {alpha:.3g}, sigma {sigma:.3g}: drawing starts where training ends"
        return Finding("schedule", "ok", text)
    left = alpha / sigma
    text = f"at t = 1 the signal left is {left:.3g} of the noise"
    strength = None
    if case.readable is not None:
        strength = left * _mean_size(case.items[0].latents)
        text += f", {strength:.2g} for a picture's mean"
    advice = (
        "drawing starts at pure noise, but training never showed it that: set noise.zero_terminal_snr: true (with "
        "v_prediction or sample) or a larger noise.shift, and train anew"
    )
    if left > SIGNAL_LEFT or strength is not None and strength > LEFT:
        return Finding("schedule", "fail", f"{text}: pictures can be told from it", advice)
    if strength is not None and strength > LEFT_A_LITTLE:
        return Finding("schedule", "warn", f"{text}: brightness can be told from it, so drawn ones are alike", advice)
    return Finding("schedule", "ok", text)


def _mean_size(latents: Tensor) -> float:
    """Root mean square of the items' channel means, in units of the noise's: of a mean over h w places."""
    places = latents.shape[2] * latents.shape[3]
    return (latents.double().mean((2, 3)).square().mean() * places).sqrt().item()


def check_scheduler(case: Case) -> Finding:
    """The saved scheduler takes the noise process that was trained: prediction type, schedule, start."""
    scheduler, settings = case.pipeline.scheduler, case.settings
    name = type(scheduler).__name__
    if settings is None:
        return Finding("scheduler", "skip", f"{name}; the model does not say which noise process was trained")
    chosen, noise = settings.sampling, settings.noise
    expected = export_scheduler(noise, chosen.sampler, chosen.time_grid, chosen.eta)
    advice = "write scheduler/scheduler_config.json anew: remove final/ and start train_ldm.py again, or export the run"
    kinds = [each.config.get("prediction_type", "none") for each in (scheduler, expected)]
    if kinds[0] != kinds[1]:
        text = f"{name} takes the network's output for {kinds[0]}; it was trained to give {kinds[1]}"
        return Finding("scheduler", "fail", text, advice)
    theirs = process_of(scheduler)
    apart, t = _apart(case.process, theirs)
    if apart > OTHER_PROCESS:
        text = f"{name} has another noise schedule than the trained one ({noise.process}, shift {noise.shift:g})"
        return Finding("scheduler", "fail", f"{text}: ln snr is {apart:.2g} off at t = {t:.2f}", advice)
    start = _start(scheduler, case.process, case.pipeline.defaults["num_inference_steps"])
    if not 0.8 < start < 1.25:
        text = f"{name} starts with noise {start:.2g} times as large as training had there"
        return Finding("scheduler", "fail", text, advice)
    shift = scheduler.config.get("flow_shift", noise.shift)
    if noise.process == "flow" and shift != noise.shift:  # the network is told the same, at other times
        text = f"{name} spaces its steps by flow_shift {shift:g}; noise.shift {noise.shift:g} was trained"
        return Finding("scheduler", "warn", text, advice)
    return Finding("scheduler", "ok", f"{name}: {noise.process}, {kinds[1]}, as trained")


def _apart(ours: NoiseProcess, theirs: NoiseProcess) -> tuple[float, float]:
    """The largest difference of ln(snr) where the network is told the same, and our time there; ends left out."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    same = theirs.schedule.from_timestep(ours.schedule.timestep(t)).clamp(0, 1)
    apart = (theirs.schedule.logsnr(same) - ours.schedule.logsnr(t)).abs().nan_to_num(math.inf)
    return apart.max().item(), t[apart.argmax()].item()


def _start(scheduler, process: NoiseProcess, steps: int) -> float:
    """Standard deviation of the network's first input in drawing over that in training, for data of unit variance."""
    scheduler.set_timesteps(steps)
    first = scheduler.timesteps[0]
    noise = torch.ones(1, dtype=torch.float64) * scheduler.init_noise_sigma
    drawn = scheduler.scale_model_input(noise, first).item()
    t = process.schedule.from_timestep(first.double()).clamp(0, 1)
    return drawn / (process.schedule.norm(t) * process.schedule.input_scale(t)).item()


def check_sampler(case: Case) -> Finding:
    """The model's own number of steps leads where many steps lead, from the same noise, unguided."""
    steps = case.pipeline.defaults["num_inference_steps"]
    fine = case.draw(FINE_STEPS, count=case.more * COMPARED)
    ours = case.plain[: len(fine)]
    advice = f"set sampling.num_inference_steps: {max(20, 2 * steps)}"
    if not torch.isfinite(fine).all():
        return Finding("sampler", "fail", "drawing gives NaN or infinity", "another sampling.sampler, or train anew")
    if _stochastic(case.pipeline.scheduler):
        off = abs(ours.std() / fine.std() - 1).item()
        text = f"{steps} steps of a stochastic sampler spread by {off:.1%} other than {FINE_STEPS}"
    else:
        off = ((ours - fine).square().mean().sqrt() / fine.std()).item()
        text = f"{steps} steps end {off:.1%} of the deviation away from {FINE_STEPS} steps of the same noise"
    if off > COARSE:
        return Finding("sampler", "fail", f"{text}: too few", advice)
    if off > RATHER_COARSE:
        return Finding("sampler", "warn", text, advice)
    return Finding("sampler", "ok", text)


def _stochastic(scheduler) -> bool:
    name = type(scheduler).__name__
    return "sde" in str(scheduler.config.get("algorithm_type")) or name.startswith(("DDPM", "EulerAncestral"))


def check_samples(case: Case) -> Finding:
    """Drawn latents, unguided, have the mean and deviation of the held-out items whose captions were asked for."""
    if case.settings is None:
        return Finding("samples", "skip", "the data are not known")
    (mean, variance), (own_mean, own_variance) = (channel_moments(z) for z in (case.plain, case.asked_for))
    ratio = (variance / own_variance.clamp(min=1e-12)).sqrt()
    away = ((mean - own_mean).abs() / own_variance.sqrt().clamp(min=1e-6)).max().item()
    text = f"deviation {ratio.min():.2f} to {ratio.max():.2f} times the data's, mean at most {away:.2f} deviations away"
    worst = max(ratio.max().item(), 1 / max(ratio.min().item(), 1e-6))
    advice = "the loss is good and the steps are fine, so the way from noise is at fault: sampling.sampler, time_grid"
    if worst > SPREAD or away > OFF_CENTRE:
        return Finding("samples", "fail", text, advice)
    if worst > DOUBTFUL_SPREAD or away > DOUBTFUL_CENTRE:
        return Finding("samples", "warn", text, "compare sampling.num_inference_steps 50, and train longer")
    return Finding("samples", "ok", text)


def check_guidance(case: Case) -> Finding:
    """Guidance is on, and not so strong that it drives latents and pixels out of their range."""
    scale = float(case.pipeline.defaults["guidance_scale"])
    if case.unconditional:
        return Finding("guidance", "ok", f"scale {scale:g} has no effect without captions")
    advice = "set sampling.guidance_scale: 2 to 5 (in ldm.json for an exported model)"
    if scale == 0:
        return Finding("guidance", "fail", "scale 0: only the null caption is drawn, prompts are ignored", advice)
    first, last = case.pipeline.defaults.get("guidance_interval", (0, 1))
    if scale == 1 or first == last:
        return Finding("guidance", "warn", f"off (scale {scale:g}): prompts are followed weakly", advice)
    guided = case.draw(case.pipeline.defaults["num_inference_steps"], scale)
    stretch = (guided.std() / case.plain.std()).item()
    text, burnt = f"scale {scale:g}: latents {stretch:.2f} times as wide as without", False
    if case.more == 1:  # pictures; points have no range
        over = [_beyond(case, latents) for latents in (case.plain, guided)]
        text += f", {over[1]:.1%} of values clipped (without {over[0]:.1%})"
        burnt = over[1] > over[0] + CLIPPED
    if burnt or not stretch < STRETCHED:
        return Finding("guidance", "fail", f"{text}: far too strong", advice)
    if stretch > STRETCHED_A_LITTLE:
        return Finding("guidance", "warn", text, f"{advice}, or sampling.guidance_rescale: 0.7")
    return Finding("guidance", "ok", text)


@torch.no_grad()
def _beyond(case: Case, latents: Tensor) -> float:
    """Share of decoded values that clipping changes by more than a twentieth of the range."""
    vae = case.pipeline.vae
    raw = from_model_latents(latents.to(case.pipeline.device, vae.dtype), vae.config)
    decoded = vae.decode(raw, return_dict=False)[0]
    return (decoded.abs() > 1.1).float().mean().item()
