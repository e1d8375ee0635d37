"""Stock schedulers against our samplers: driven as the stock pipeline drives them, with a perfect network."""

import warnings

import diffusers
import pytest
import torch
from tiny_model import tiny_pipeline

from ldm.config.settings import NoiseOptions, SamplingOptions
from ldm.diffusion.parameterization import convert
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.samplers import SAMPLERS
from ldm.diffusion.sampling import denoise_with, prior, sample
from ldm.diffusion.time_grids import TIME_GRIDS
from ldm.hub.export import save_folder
from ldm.pipelines.component_classes import CLASSES
from ldm.pipelines.denoising_loop import SamplingPlan, denoise
from ldm.pipelines.diffusers_schedulers import (
    DRIVERS,
    RECIPES,
    _trained,
    check_scheduler,
    check_steps,
    export_scheduler,
    offered,
    process_of,
    with_sampler,
)
from ldm.pipelines.loading import load_pipeline
from ldm.utils.errors import UserError

FLOW = NoiseOptions()
EPSILON, V, X0 = ({"prediction_type": kind} for kind in ("epsilon", "v_prediction", "sample"))
PROCESSES = {
    "flow": FLOW,
    "shifted flow": NoiseOptions(shift=3.0),
    "karras": NoiseOptions(process="karras", **V),
    "linear": NoiseOptions(process="linear", **EPSILON),
    "scaled_linear": NoiseOptions(process="scaled_linear", **V),
    "cosine": NoiseOptions(process="cosine", **V),
    "shifted cosine": NoiseOptions(process="cosine", shift=2.0, **V),
    "sigmoid": NoiseOptions(process="sigmoid", **X0),
    "zero snr": NoiseOptions(process="scaled_linear", zero_terminal_snr=True, **V),
    "zero snr cosine": NoiseOptions(process="cosine", zero_terminal_snr=True, **X0),
    "learned": NoiseOptions(process="cosine", learned_variance=True, **EPSILON),
}
COMBINATIONS = [
    (name, sampler, grid)
    for name, noise in PROCESSES.items()
    for sampler, grids in offered(_trained(noise)).items()
    for grid in grids
    if grid != "trailing"  # the same as uniform
]


def perfect_network(process: NoiseProcess, mean: float, std: float):
    """What a perfect network answers for data N(mean, std^2): it knows x_in and the timestep it is told, no more."""
    schedule = process.schedule

    def network(x_in, timestep):
        t = schedule.from_timestep(timestep.double()).clamp(min=1e-6)
        alpha, sigma = (scale.item() for scale in schedule.scales(t))
        x = x_in / schedule.input_scale(t).item()
        x0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)
        prediction = convert(x0, x, alpha, sigma, "sample", process.prediction_type)
        return torch.cat([prediction, torch.full_like(x, -0.5)], 1) if process.learned_variance else prediction

    return network


def drive(scheduler, network, noise, steps, generator):
    """The loop of `StableDiffusionPipeline`."""
    import inspect

    scheduler.set_timesteps(steps)
    takes = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, return_dict=False, **takes)[0]
    return x


@pytest.mark.parametrize(("name", "sampler", "grid"), COMBINATIONS, ids=["-".join(each) for each in COMBINATIONS])
def test_every_scheduler_draws_as_its_sampler(name, sampler, grid):
    """Their timesteps are whole numbers and their flow starts at 0.999, hence the tolerance."""
    options = PROCESSES[name]
    process = NoiseProcess(**options.model_dump())
    network, steps, seed = perfect_network(process, 0.5, 0.5), 20, torch.Generator().manual_seed
    noise = prior(process.schedule, (64, 1, 1, 1), seed(0)) / process.schedule.norm(torch.ones(()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, about diffusers' way with arrays
        theirs = drive(export_scheduler(options, sampler, grid), network, noise, steps, seed(1))
    times = TIME_GRIDS[grid](process.schedule, steps)
    start = noise * process.schedule.norm(times[0]).item()
    ours = sample(denoise_with(process, network), start, process.schedule, times, sampler, seed(1))
    assert theirs.isfinite().all()
    assert (ours - theirs).abs().max() < 0.03, (ours - theirs).abs().max()


def drawn(options: NoiseOptions, mean: float, std: float, steps: int) -> tuple[float, float]:
    """Mean and deviation of what the exported scheduler draws. The network is affine in x, hence so is the whole:
    two starting points give its offset and slope, without any sampling error."""
    network = perfect_network(NoiseProcess(**options.model_dump()), mean, std)
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    offset, at_one = drive(export_scheduler(options), network, x, steps, None).flatten().tolist()
    return offset, abs(at_one - offset)


@pytest.mark.parametrize("name", ["flow", "cosine", "karras", "zero snr cosine"])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.5), (-1.0, 1.2)])
def test_a_perfect_network_gives_the_right_distribution_in_20_steps(name, mean, std):
    offset, spread = drawn(PROCESSES[name], mean, std, 20)
    assert offset == pytest.approx(mean, abs=0.02)
    assert spread == pytest.approx(std, rel=0.06 if name == "karras" else 0.02)  # its 20 steps go from 80 to 0.002


@pytest.mark.parametrize("steps", [2, 3, 4])
@pytest.mark.parametrize("name", ["cosine", "shifted cosine", "zero snr", "linear"])
def test_few_steps_of_ancestral_euler_are_finite(name, steps):
    """In float32 the noise of a step from sigma / alpha 20,000 rounds below zero: diffusers' own gives NaN."""
    noise, seed = torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed
    network, options = perfect_network(NoiseProcess(**PROCESSES[name].model_dump()), 0.5, 0.5), PROCESSES[name]
    for grid in offered(_trained(options))["euler_ancestral"]:
        scheduler = export_scheduler(options, "euler_ancestral", grid)
        drawn = drive(scheduler, network, noise, steps, seed(1))
        assert drawn.isfinite().all() and drawn.mean() == pytest.approx(0.5, abs=0.3)
    swapped = diffusers.EulerAncestralDiscreteScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    plan = SamplingPlan(
        noise, None, noise, swapped, steps, seed(1)
    )  # as somebody may put it in place of the model's own
    assert denoise(plan, network).isfinite().all()


def test_numbers_that_are_not_finite_are_said(caplog):
    noise = torch.zeros(1, 1, 1, 1)
    denoise(SamplingPlan(noise, None, noise, export_scheduler(FLOW), 3), lambda x, t: x / 0)
    assert "gave latents that are not finite numbers" in caplog.text


def test_one_step_on_exponential_sigmas_of_edm_is_refused():
    scheduler = export_scheduler(PROCESSES["karras"], "dpmpp_2m", "logsnr")
    with pytest.raises(ValueError, match="num_inference_steps must be a whole number, from 2 to 1000, got 1"):
        check_steps(scheduler, 1)
    assert check_steps(scheduler, 2) == 2 and check_steps(export_scheduler(FLOW), 1) == 1


NOT_EXACT = {"LCMScheduler", "TCDScheduler"}  # for distilled models
OPTIONAL = {"DPMSolverSDEScheduler"}  # needs torchsde


@pytest.mark.parametrize("kind", DRIVERS)
def test_every_driver_gives_the_right_distribution(kind):
    """Of the classes that a pipeline takes in place of its own, by `from_config`."""
    options = PROCESSES[{"flow": "flow", "karras": "karras", "tabled": "cosine"}[kind]]
    network, own = perfect_network(NoiseProcess(**options.model_dump()), 0.5, 0.5), export_scheduler(options)
    noise = torch.randn(2000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name in set(DRIVERS[kind]) - OPTIONAL - NOT_EXACT:
        changes = {"clip_sample": False} | ({"algorithm_type": "data_prediction"} if name.startswith("SA") else {})
        scheduler = getattr(diffusers, name).from_config(own.config, **changes)
        check_scheduler(scheduler, own)
        plan = SamplingPlan(noise, None, noise, scheduler, 50, torch.Generator().manual_seed(1))
        drawn = denoise(plan, network)
        assert (drawn.mean().item(), drawn.std().item()) == pytest.approx((0.5, 0.5), abs=0.06), name


def test_a_shifted_flow_also_converges():
    assert export_scheduler(PROCESSES["shifted flow"]).config.flow_shift == 3.0
    assert drawn(PROCESSES["shifted flow"], 0.5, 0.5, 100) == pytest.approx((0.5, 0.5), rel=0.02)


def test_scaled_linear_converges_but_not_to_the_mean():
    """Its last timestep still holds 7% of the picture, which sampling from pure noise cannot know: a known trait."""
    assert drawn(PROCESSES["scaled_linear"], 0.5, 0.5, 200) == pytest.approx((0.48, 0.5), abs=0.02)


def test_timesteps_are_what_training_tells_the_network():
    flow = export_scheduler(FLOW)
    flow.set_timesteps(20)
    assert (flow.timesteps - 1000 * flow.sigmas[:-1]).abs().max() <= 1  # diffusers cuts them to whole numbers
    for name in ("linear", "cosine", "shifted cosine", "sigmoid", "zero snr"):
        theirs, options = export_scheduler(PROCESSES[name]), PROCESSES[name]
        ours = NoiseProcess(**options.model_dump()).schedule.alphas_cumprod
        torch.testing.assert_close(theirs.alphas_cumprod.double(), ours, atol=1e-6, rtol=1e-2)
        theirs.set_timesteps(20)
        assert theirs.timesteps[0] == 999


def test_every_scheduler_can_be_loaded_and_every_sampler_but_two_can_be_exported():
    named = {scheduler for recipes in RECIPES.values() for scheduler, _ in recipes.values()}
    assert named <= set(CLASSES["scheduler"])
    anywhere = {sampler for recipes in RECIPES.values() for sampler in recipes}
    assert len(anywhere) >= 10 and anywhere <= set(SAMPLERS) - {"heun", "dpmpp_3m_taylor"}  # a new one may have none


def test_the_default_is_what_it_was():
    """Exported models carry these files."""
    config = dict(export_scheduler(FLOW).config)
    assert config["solver_order"] == 2 and config["use_flow_sigmas"] and config["flow_shift"] == 1.0
    assert config["prediction_type"] == "flow_prediction" and config["timestep_spacing"] == "trailing"
    assert config["algorithm_type"] == "dpmsolver++" and config["steps_offset"] == 1
    assert config["trained_betas"] is None and not config["rescale_betas_zero_snr"]
    chosen = SamplingOptions()
    default = export_scheduler(FLOW, chosen.sampler, chosen.time_grid, chosen.eta)
    assert default.to_json_string() == export_scheduler(FLOW).to_json_string()


def test_what_no_scheduler_offers_is_said_with_what_works():
    with pytest.raises(UserError, match=r"sampler heun on the time grid uniform .* use one of dpmpp_2m \(uniform\)"):
        export_scheduler(FLOW, "heun")
    with pytest.raises(UserError, match=r"use one of ddpm \(linspace, leading\)$"):
        export_scheduler(PROCESSES["learned"])
    with pytest.raises(UserError, match="on the time grid karras"):
        export_scheduler(PROCESSES["cosine"], "dpmpp_2m", "karras")
    with pytest.raises(UserError, match="ddim with eta 0.5: set eta to null"):
        export_scheduler(FLOW, "ddim", eta=0.5)
    with pytest.raises(UserError, match="dpmpp_2m with eta 0.0"):
        export_scheduler(FLOW, eta=0.0)


def test_eta_of_0_and_1_have_schedulers():
    assert export_scheduler(FLOW, "ddim", eta=1.0).config.algorithm_type == "sde-dpmsolver++"
    linear = PROCESSES["linear"]
    assert type(export_scheduler(linear, "ddim", eta=1.0)).__name__ == "DDPMScheduler"
    assert type(export_scheduler(linear, "euler_ancestral", eta=0.0)).__name__ == "EulerDiscreteScheduler"


@pytest.mark.parametrize("name", [name for name in PROCESSES if name != "learned"])
def test_another_sampler_for_a_scheduler_is_the_one_for_its_process(name):
    noise = PROCESSES[name]
    start = export_scheduler(noise)
    for sampler in offered(_trained(noise)):
        assert settings(with_sampler(start, sampler)) == settings(export_scheduler(noise, sampler, None))
    assert settings(with_sampler(with_sampler(start, "ddim"), "dpmpp_2m")) == settings(start)


def settings(scheduler) -> dict:
    """What a scheduler was made with; diffusers also keeps which of it were defaults."""
    kept = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
    return kept | {"class": type(scheduler).__name__}


def test_a_stock_pipeline_scheduler_can_be_swapped_too():
    from diffusers import PNDMScheduler

    theirs = PNDMScheduler(1000, 0.00085, 0.012, "scaled_linear", skip_prk_steps=True, steps_offset=1)
    swapped = with_sampler(theirs, "unipc")
    assert type(swapped).__name__ == "UniPCMultistepScheduler" and swapped.config.beta_end == 0.012
    torch.testing.assert_close(swapped.alphas_cumprod, theirs.alphas_cumprod)


STOCK = [("flow", "unipc"), ("karras", "dpmpp_2m"), ("karras", "euler"), ("linear", "heun_edm"), ("zero snr", "ddim")]


@pytest.mark.parametrize(("name", "sampler"), STOCK, ids=["-".join(each) for each in STOCK])
def test_the_stock_pipeline_can_drive_it_and_draws_the_same(name, sampler, tmp_path):
    from diffusers import DiffusionPipeline

    pipeline = tiny_pipeline(PROCESSES[name])
    folder = tmp_path / "model"
    folder.mkdir()
    asked = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt"}
    asked["latents"] = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = pipeline("a", sampler=sampler, **asked).images
    pipeline.scheduler = with_sampler(pipeline.scheduler, sampler)
    save_folder(pipeline, folder, "tiny")
    stock = DiffusionPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    assert (stock("a", **asked).images - ours).abs().max() <= 2 / 255
    assert (load_pipeline(folder)("a", **asked).images - ours).abs().max() <= 1 / 255


NOISES = [
    {},
    {"shift": 3.0},
    *({"process": name, "prediction_type": "epsilon"} for name in ("linear", "scaled_linear", "cosine", "sigmoid")),
    {"process": "linear", "prediction_type": "v_prediction", "zero_terminal_snr": True},
    {"process": "cosine", "prediction_type": "sample", "shift": 2.0},
    {"process": "karras", "prediction_type": "v_prediction"},
]


@pytest.mark.parametrize("options", NOISES, ids=str)
def test_schedule_prediction_and_times_come_back(options):
    noise = NoiseOptions(**options)
    expected, scheduler = NoiseProcess(**noise.model_dump()), export_scheduler(noise)
    found = process_of(scheduler)
    times = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    assert found.prediction_type == expected.prediction_type
    torch.testing.assert_close(found.schedule.logsnr(times), expected.schedule.logsnr(times), atol=2e-2, rtol=1e-3)
    torch.testing.assert_close(found.schedule.timestep(times), expected.schedule.timestep(times), atol=1e-3, rtol=1e-5)
    scheduler.set_timesteps(10)
    starts = found.schedule.from_timestep(scheduler.timesteps.double())
    assert (starts.diff() < 0).all() and starts.min() >= 0 and 0.99 < starts[0] < 1.01
