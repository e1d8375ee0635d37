"""Checks of sampling: where the noise process ends, whose process the scheduler takes, its steps, and guidance."""

import math

import torch
from torch import Tensor

from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.schedules import DiscreteVP
from ldm.evaluation.diagnostics.context import RunContext
from ldm.evaluation.diagnostics.findings import Finding, fail, ok, skip, warn
from ldm.evaluation.loss_by_time import channel_moments
from ldm.models.latents import from_model_latents
from ldm.pipelines.diffusers_schedulers import export_scheduler, process_of
from ldm.utils.image_tensors import as_seen

LEFT, LEFT_A_LITTLE = 4.0, 1.0  # signal to noise of the image's mean at t = 1
SIGNAL_LEFT = 0.2  # alpha / sigma at t = 1
OTHER_PROCESS = 0.1  # difference of ln(snr) at one timestep
FINE_STEPS, COMPARED = 200, 8  # of the reference: steps and images
COARSE, RATHER_COARSE = 0.4, 0.2  # of the deviation of samples by fine steps
SPREAD, DOUBTFUL_SPREAD = 2.0, 1.4  # of sampled latents against the data's, and back
OFF_CENTRE, DOUBTFUL_CENTRE = 1.0, 0.5
STRETCHED, STRETCHED_A_LITTLE = 2.0, 1.4  # deviation of guided latents over unguided ones
CLIPPED = 0.25  # fraction of values more than without guidance


def check_schedule(context: RunContext) -> Finding:
    """Drawing starts at pure noise; training's last time must not show more than that."""
    process = context.process
    alpha, sigma = (float(scale) for scale in process.scales(torch.ones((), dtype=torch.float64)))
    if not isinstance(process.schedule, DiscreteVP):
        text = f"at t = 1 alpha {alpha:.3g}, sigma {sigma:.3g}: sampling starts where training ends"
        return ok(text)
    left = alpha / sigma
    text = f"at t = 1 the signal left is {left:.3g} of the noise"
    strength = None
    if context.readable is not None:
        strength = left * _mean_size(context.items[0].latents)
        text += f", {strength:.2g} for an image's mean"
    advice = (
        "sampling starts at pure noise, but training never showed it that: set noise.zero_terminal_snr: true (with "
        "v_prediction or sample) or a larger noise.shift, and train again"
    )
    if left > SIGNAL_LEFT or (strength is not None and strength > LEFT):
        return fail(f"{text}: images can be recognised in it", advice)
    if strength is not None and strength > LEFT_A_LITTLE:
        return warn(f"{text}: brightness can be recognised in it, so samples all have the same", advice)
    return ok(text)


def _mean_size(latents: Tensor) -> float:
    """Root mean square of the items' channel means, in units of the noise's: of a mean over h w places."""
    places = latents.shape[2] * latents.shape[3]
    return (latents.double().mean((2, 3)).square().mean() * places).sqrt().item()


def check_scheduler(context: RunContext) -> Finding:
    """The saved scheduler takes the noise process that was trained: prediction type, schedule, start."""
    scheduler, settings = context.pipeline.scheduler, context.settings
    name = type(scheduler).__name__
    if settings is None:
        return skip(f"{name}; the model does not say which noise process was trained")
    chosen, noise = settings.sampling, settings.noise
    expected = export_scheduler(noise, chosen.sampler, chosen.time_grid, chosen.eta)
    advice = (
        "write scheduler/scheduler_config.json again: remove final/ and start `ldm train ldm` again, or export the run"
    )
    types = [each.config.get("prediction_type", "none") for each in (scheduler, expected)]
    if types[0] != types[1]:
        text = f"{name} takes the network's output for {types[0]}; it was trained to give {types[1]}"
        return fail(text, advice)
    theirs = process_of(scheduler)
    apart, t = _apart(context.process, theirs)
    if apart > OTHER_PROCESS:
        text = f"{name} has another noise schedule than the trained one ({noise.process}, shift {noise.shift:g})"
        return fail(f"{text}: ln snr is {apart:.2g} off at t = {t:.2f}", advice)
    start = _start(scheduler, context.process, context.pipeline.defaults["num_inference_steps"])
    if not 0.8 < start < 1.25:
        text = f"{name} starts with noise {start:.2g} times as large as training had there"
        return fail(text, advice)
    shift = scheduler.config.get("flow_shift", noise.shift)
    if noise.process == "flow" and shift != noise.shift:  # the network receives the same timesteps, at other times
        text = f"{name} spaces its steps by flow_shift {shift:g}; noise.shift {noise.shift:g} was trained"
        return warn(text, advice)
    return ok(f"{name}: {noise.process}, {types[1]}, as trained")


def _apart(ours: NoiseProcess, theirs: NoiseProcess) -> tuple[float, float]:
    """The largest difference of ln(snr) for the same timestep, and our time there; ends left out."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    same = theirs.schedule.from_timestep(ours.schedule.timestep(t)).clamp(0, 1)
    apart = (theirs.schedule.logsnr(same) - ours.schedule.logsnr(t)).abs().nan_to_num(math.inf)
    return apart.max().item(), t[apart.argmax()].item()


def _start(scheduler, process: NoiseProcess, steps: int) -> float:
    """Standard deviation of the network's first input in sampling over that in training, for data of unit variance."""
    scheduler.set_timesteps(steps)
    first = scheduler.timesteps[0]
    noise = torch.ones(1, dtype=torch.float64) * scheduler.init_noise_sigma
    sampled = scheduler.scale_model_input(noise, first).item()
    t = process.schedule.from_timestep(first.double()).clamp(0, 1)
    return sampled / (process.schedule.norm(t) * process.schedule.input_scale(t)).item()


def check_sampler(context: RunContext) -> Finding:
    """The model's own number of steps ends close to where many steps end, from the same noise, unguided."""
    steps = context.pipeline.defaults["num_inference_steps"]
    fine = context.sample(FINE_STEPS, count=context.scale * COMPARED)
    ours = context.unguided[: len(fine)]
    advice = f"set sampling.num_inference_steps: {max(20, 2 * steps)}"
    if not torch.isfinite(fine).all():
        return fail("sampling gives NaN or infinity", "another sampling.sampler, or train again")
    if _stochastic(context.pipeline.scheduler):
        off = abs(ours.std() / fine.std() - 1).item()
        text = f"{steps} steps of a stochastic sampler spread by {off:.1%} other than {FINE_STEPS}"
    else:
        off = ((ours - fine).square().mean().sqrt() / fine.std()).item()
        text = f"{steps} steps end {off:.1%} of the deviation away from {FINE_STEPS} steps of the same noise"
    if off > COARSE:
        return fail(f"{text}: too few", advice)
    if off > RATHER_COARSE:
        return warn(text, advice)
    return ok(text)


def _stochastic(scheduler) -> bool:
    name = type(scheduler).__name__
    return "sde" in str(scheduler.config.get("algorithm_type")) or name.startswith(("DDPM", "EulerAncestral"))


def check_samples(context: RunContext) -> Finding:
    """Sampled latents, unguided, have the mean and deviation of the held-out items whose captions were the prompts."""
    if context.settings is None:
        return skip("the data are not known")
    (mean, variance), (own_mean, own_variance) = (channel_moments(z) for z in (context.unguided, context.expected))
    ratio = (variance / own_variance.clamp(min=1e-12)).sqrt()
    away = ((mean - own_mean).abs() / own_variance.sqrt().clamp(min=1e-6)).max().item()
    text = f"deviation {ratio.min():.2f} to {ratio.max():.2f} times the data's, mean at most {away:.2f} deviations away"
    worst = max(ratio.max().item(), 1 / max(ratio.min().item(), 1e-6))
    advice = "the loss is good and the steps are fine, so the sampler is the cause: sampling.sampler, time_grid"
    if worst > SPREAD or away > OFF_CENTRE:
        return fail(text, advice)
    if worst > DOUBTFUL_SPREAD or away > DOUBTFUL_CENTRE:
        return warn(text, "compare sampling.num_inference_steps 50, and train longer")
    return ok(text)


def check_guidance(context: RunContext) -> Finding:
    """Guidance is on, and not so strong that it drives latents and pixels out of their range."""
    scale = float(context.pipeline.defaults["guidance_scale"])
    if context.unconditional:
        return ok(f"scale {scale:g} has no effect without captions")
    advice = "set sampling.guidance_scale: 2 to 5 (in ldm.json for an exported model)"
    if scale == 0:
        return fail("scale 0: only the null caption is used, prompts are ignored", advice)
    first, last = context.pipeline.defaults.get("guidance_interval", (0, 1))
    if scale == 1 or first == last:
        return warn(f"off (scale {scale:g}): prompts are followed weakly", advice)
    guided = context.sample(context.pipeline.defaults["num_inference_steps"], scale)
    stretch = (guided.std() / context.unguided.std()).item()
    text, burnt = f"scale {scale:g}: latents {stretch:.2f} times as wide as without", False
    if context.scale == 1:  # images; points have no range
        over = [_beyond(context, latents) for latents in (context.unguided, guided)]
        text += f", {over[1]:.1%} of values clipped (without {over[0]:.1%})"
        burnt = over[1] > over[0] + CLIPPED
    if burnt or not stretch < STRETCHED:
        return fail(f"{text}: far too strong", advice)
    if stretch > STRETCHED_A_LITTLE:
        return warn(text, f"{advice}, or sampling.guidance_rescale: 0.7")
    return ok(text)


@torch.no_grad()
def _beyond(context: RunContext, latents: Tensor) -> float:
    """Fraction of decoded values that clipping changes by more than a twentieth of the range."""
    vae = context.pipeline.vae
    raw = from_model_latents(latents.to(context.pipeline.device, vae.dtype), vae.config)
    decoded = as_seen(vae.decode(raw, return_dict=False)[0])
    return (decoded.abs() > 1.1).float().mean().item()
