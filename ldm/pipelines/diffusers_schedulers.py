"""Our samplers as stock diffusers schedulers, which is what an exported model carries.

`export_scheduler` answers for a trained noise process, `with_sampler` for a scheduler that is there already. Both give
the scheduler that takes the same steps as the sampler in `ldm.diffusion.samplers`, or say which ones there are.

    process     stock schedulers
    flow        DPM-Solver++ and UniPC over flow sigmas, the only ones that Stable Diffusion's own pipeline can drive:
                flow-matching ones have no `scale_model_input`. First order is DDIM and Euler, or, as an SDE, DDPM.
    tabled      each sampler's own
    karras      EDM's DPM-Solver++ and Euler, data of deviation 1
"""

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.schedules import NUM_TRAIN_TIMESTEPS, SCHEDULES, DiscreteVP, RectifiedFlow, VarianceExploding
from ldm.diffusion.time_grids import MAX_RATIO
from ldm.pipelines.component_classes import stock_class
from ldm.pipelines.image_shapes import check_count
from ldm.pipelines.sampler_recipes import ANCESTRAL, EDM_SOLVER, EULER, HEUN, RECIPES, SOLVER, UNIPC, kind_of
from ldm.utils.errors import UserError

if TYPE_CHECKING:
    from ldm.config.settings import NoiseOptions

log = logging.getLogger(__name__)
# kind of process -> the schedulers of diffusers that can drive it, each tried with a perfect network (see the tests)
DRIVERS: dict[str, tuple[str, ...]] = {
    "flow": (SOLVER, "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler")
    + (UNIPC, "SASolverScheduler"),
    "karras": (EDM_SOLVER, "EDMEulerScheduler"),
    "tabled": (SOLVER, "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler", UNIPC)
    + ("SASolverScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler")
    + (EULER, ANCESTRAL, HEUN, "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler")
    + ("PNDMScheduler", "LCMScheduler", "TCDScheduler"),
}
# of a scheduler that is not diffusers' own
NEEDED = ("config", "set_timesteps", "timesteps", "scale_model_input", "init_noise_sigma", "step", "add_noise")
_TRAILING = {name: {"timestep_spacing": "trailing"} for name in ("uniform", "trailing")}
_LEADING = {"leading": {"timestep_spacing": "leading"}}
_BOTH_ENDS = {"linspace": {"timestep_spacing": "linspace"}}
_RATIOS = {"karras": {"use_karras_sigmas": True}, "logsnr": {"use_exponential_sigmas": True}}
_FROM_BOTH_ENDS = {name: {**settings, **_BOTH_ENDS["linspace"]} for name, settings in _RATIOS.items()}
# scheduler -> our time grid -> settings that give the same times. DPM-Solver++ and UniPC have leading and linspace
# grids of their own, one step longer than the others'; DDIM's last step on linspace misses the data.
GRIDS: dict[str, dict[str, dict[str, Any]]] = {
    SOLVER: _TRAILING | _RATIOS,
    UNIPC: _TRAILING | _RATIOS,
    EULER: _TRAILING | _LEADING | _BOTH_ENDS | _FROM_BOTH_ENDS,
    HEUN: _TRAILING | _LEADING | _BOTH_ENDS | _FROM_BOTH_ENDS,
    ANCESTRAL: _TRAILING | _LEADING | _BOTH_ENDS,
    "DDIMScheduler": _TRAILING | _LEADING,
    "DDPMScheduler": _TRAILING | _LEADING | _BOTH_ENDS,
}
_EDM_GRIDS = {"uniform": {}, "karras": {}, "logsnr": {"sigma_schedule": "exponential"}}
_FLOW_GRIDS: dict[str, dict[str, Any]] = {"uniform": {"timestep_spacing": "trailing"}}


@dataclass(frozen=True)
class Process:
    """A noise process in diffusers' words.

    Attributes: kind ("flow", "tabled" or "karras"); settings that every scheduler of the kind takes; largest: sigma /
    alpha at the first step of a table; learned: the network gives the variance too.
    """

    kind: str
    settings: dict[str, Any]
    largest: float = 0.0
    learned: bool = False


def export_scheduler(
    noise: "NoiseOptions", sampler: str = "dpmpp_2m", time_grid: str | None = "uniform", eta: float | None = None
):
    """The stock scheduler for a model trained with `noise`.

    Args:
        sampler, time_grid: names in `SAMPLERS` and `TIME_GRIDS`; None = the first grid that
            the sampler's scheduler has, which is uniform wherever there is one.
        eta: of ddim and euler_ancestral, 0 or 1; schedulers hold no other.

    Raises: UserError naming what works, where diffusers has no scheduler that takes these steps.
    """
    if eta is not None:
        same = {("ddim", 0.0): "ddim", ("ddim", 1.0): "ddpm"}
        same |= {("euler_ancestral", 0.0): "euler", ("euler_ancestral", 1.0): "euler_ancestral"}
        if (sampler, eta) not in same:
            raise UserError(
                f"no scheduler of diffusers holds sampling.sampler {sampler} with eta {eta}: set eta to null (ddim and "
                "euler_ancestral: 0 or 1); `ldm sample --eta` takes any"
            )
        sampler = same[sampler, eta]
    return _build(_trained(noise), sampler, time_grid)


def with_sampler(scheduler: Any, sampler: str, time_grid: str | None = None):
    """A new scheduler for the same process as a stock scheduler's, with another sampler; as `export_scheduler`."""
    return _build(_read(scheduler), sampler, time_grid)


def process_of(scheduler: Any) -> NoiseProcess:
    """Schedule and prediction type of a diffusers scheduler; how times are drawn and weighed is not known to it.

    Raises: ValueError for a scheduler that is neither a flow, nor EDM, nor has a table of alphas_cumprod.
    """
    config = scheduler.config
    prediction_type = config.get("prediction_type", "flow_prediction")
    if config.get("use_flow_sigmas") or prediction_type == "flow_prediction":
        process = NoiseProcess()
        process.schedule = RectifiedFlow(config.get("flow_shift") or config.get("shift") or 1.0)
    elif "sigma_data" in config:
        process = NoiseProcess("karras", "v_prediction")
        process.schedule = VarianceExploding(config["sigma_min"] / VarianceExploding.sigma_min)
    elif hasattr(scheduler, "alphas_cumprod"):
        process = NoiseProcess("linear", prediction_type)
        process.schedule = DiscreteVP(scheduler.alphas_cumprod.double().cpu().numpy())
    else:
        raise ValueError(f"the noise process of {type(scheduler).__name__} is not known")
    process.learned_variance = config.get("variance_type") in ("learned", "learned_range")
    return process


def check_same_process(scheduler: Any, weak: Any) -> None:
    """Raises: ValueError unless the scheduler of a weak model has the noise process of the main one's."""
    if difference := process_difference(scheduler, weak):
        raise ValueError(f"the weak model must have the main one's noise process: {difference}")


def process_difference(scheduler: Any, other: Any) -> str | None:
    """How the noise processes of two schedulers differ, in words, or None. Raises: as `process_of`."""
    ours, theirs = process_of(scheduler), process_of(other)
    times = torch.linspace(0.05, 0.95, 10)
    same = torch.allclose(ours.schedule.logsnr(times), theirs.schedule.logsnr(times), atol=1e-3)
    if ours.prediction_type == theirs.prediction_type and same:
        return None
    return (
        f"{ours.prediction_type} on {type(ours.schedule).__name__} here, "
        f"{theirs.prediction_type} on {type(theirs.schedule).__name__} there"
    )


def check_scheduler(scheduler: Any, own: Any) -> None:
    """Whether images come right with a scheduler that somebody puts in place of the model's own.

    Raises: ValueError naming those that would do.
    """
    if not _can_drive(scheduler):
        name = type(scheduler).__name__
        raise ValueError(f"scheduler {name} cannot generate with this model: use {_instead(own)}, or sampler=NAME")


def check_steps(scheduler: Any, num_inference_steps: Any) -> int:
    """The number as an int, if the scheduler takes as many steps. Raises: ValueError."""
    exponential = type(scheduler).__name__ == EDM_SOLVER and scheduler.config.get("sigma_schedule") == "exponential"
    least = 2 if exponential else 1  # its single step would start at the last sigma
    return check_count("num_inference_steps", num_inference_steps, least, scheduler.config.num_train_timesteps)


def set_steps(scheduler: Any, count: int, timesteps: Any = None, sigmas: Any = None, device: Any = None) -> int:
    """`scheduler.set_timesteps`, with times of one's own in place of `count` where either kind is given.

    The flow schedulers of diffusers ignore timesteps, and only UniPC takes sigmas, so here both are put in place:
    timestep = 1000 sigma, and given sigmas are those before the model's shift.

    Returns: how many steps there are.
    Raises: ValueError for both kinds at once, for one that the scheduler does not take, and for values that do not fall
    or are out of range.
    """
    if timesteps is None and sigmas is None:
        scheduler.set_timesteps(count, device=device)
        return count
    if timesteps is not None and sigmas is not None:
        raise ValueError("only one of timesteps and sigmas may be given: each decides the other")
    name, kind = "timesteps" if sigmas is None else "sigmas", kind_of(scheduler.config)
    values = _falling(name, timesteps if sigmas is None else sigmas)
    most = scheduler.config.num_train_timesteps - 1 if sigmas is None else 1 if kind == "flow" else np.inf
    if values[0] > most:
        raise ValueError(f"{name} must be {most:g} at most, got {values[0]:g}")
    if kind == "flow":
        _put_in_place(scheduler, values, name, device)
    elif kind == "karras" or name not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(f"{type(scheduler).__name__} takes no {name} of one's own: leave them out, or replace it")
    else:
        scheduler.set_timesteps(device=device, **{name: values.tolist()})
    return -(-len(scheduler.timesteps) // getattr(scheduler, "order", 1))


def _falling(name: str, given: Any) -> np.ndarray:
    """Times as an array, timesteps as whole numbers. Raises: ValueError."""
    try:
        values = np.asarray(given, int if name == "timesteps" else float)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.ndim != 1 or not len(values) or not (np.diff(values) < 0).all() or values[-1] < 0:
        raise ValueError(f"{name} must be a list of falling numbers, 0 or more, got {given!r}")
    return values


def _put_in_place(scheduler: Any, values: np.ndarray, name: str, device: Any) -> None:
    """Times of a flow, in the scheduler's own lists; at sigma 1 its solver would take the logarithm of 0."""
    scheduler.set_timesteps(len(values), device=device)
    shift, train_steps = scheduler.config.get("flow_shift") or 1.0, scheduler.config.num_train_timesteps
    sigmas = values / train_steps if name == "timesteps" else shift * values / (1 + (shift - 1) * values)
    sigmas = sigmas.clip(max=1 - 1e-6)
    scheduler.timesteps = torch.as_tensor(sigmas * train_steps + 1e-6).to(scheduler.timesteps)
    last = sigmas[-1] if scheduler.sigmas[-1] else 0.0  # some end at their last sigma
    scheduler.sigmas = torch.as_tensor([*sigmas, last]).to(scheduler.sigmas)


def warn_of_changes(scheduler: Any, own: Any) -> None:
    """Log what would change silently with a scheduler in place of the model's own: the process, or cut latents."""
    if difference := process_difference(own, scheduler):
        log.warning(
            "the new scheduler has another noise process than the model's (%s), so images will be wrong unless the "
            "network is another too; what keeps the process is %s",
            *(difference, _instead(own)),
        )
    elif scheduler.config.get("clip_sample") and not own.config.get("clip_sample"):
        log.warning(
            "the new scheduler has clip_sample=True, which cuts latents at %g: from_config(..., clip_sample=False)",
            scheduler.config.get("clip_sample_range") or 1,
        )


def _instead(own: Any) -> str:
    return f"X.from_config(pipeline.scheduler.config) with X one of {', '.join(DRIVERS[kind_of(own.config)])}"


def _can_drive(scheduler: Any) -> bool:
    """Whether it is one of `DRIVERS`, made from one, or not from diffusers and has all that the loop needs."""
    drivers = DRIVERS[kind_of(getattr(scheduler, "config", {}))]
    if any(each.__name__ in drivers for each in type(scheduler).__mro__):
        return True
    from_elsewhere = not type(scheduler).__module__.startswith("diffusers.")
    return from_elsewhere and all(hasattr(scheduler, name) for name in NEEDED)


def offered(process: Process) -> dict[str, dict[str, dict[str, Any]]]:
    """The samplers that diffusers has for a process, and for each its time grids with their settings."""
    found = {}
    for sampler in RECIPES[process.kind]:
        scheduler, _ = _recipe(process, sampler)
        if process.kind == "tabled":
            grids = _tabled_grids(process, sampler, scheduler)
        else:
            grids = _FLOW_GRIDS if process.kind == "flow" else _EDM_GRIDS
        if grids:
            found[sampler] = grids
    return found


def samplers_for(scheduler: Any) -> list[str]:
    """The names that `with_sampler` knows for a stock scheduler's process."""
    return list(offered(_read(scheduler)))


def _recipe(process: Process, sampler: str) -> tuple[str, dict[str, Any]]:
    """The scheduler and its settings.

    From a very large sigma / alpha diffusers' ancestral Euler loses the noise of its first step in float32 and gives
    NaN (cosine, 3 steps); DDPM takes the same steps.
    """
    recipes = RECIPES[process.kind]
    return recipes["ddpm" if recipes[sampler][0] == ANCESTRAL and process.largest > MAX_RATIO else sampler]


def _tabled_grids(process: Process, sampler: str, scheduler: str) -> dict[str, dict[str, Any]]:
    if scheduler == HEUN and process.largest > MAX_RATIO:
        return {}  # from so large a sigma / alpha its first step is far off, and from zero SNR infinitely
    if sampler == "euler_ancestral" and process.settings["prediction_type"] == "sample":
        return {}  # not written
    grids = GRIDS[scheduler]
    if process.learned and sampler != "ddpm":
        return {}  # the others would take the variance for channels of the sample
    if process.learned or sampler == "ddpm_large":  # unless it starts at its first training step, the last adds noise
        return _BOTH_ENDS | _LEADING
    if process.largest > MAX_RATIO:  # ours begin below
        grids = {name: settings for name, settings in grids.items() if name not in _RATIOS}
    return grids


def _build(process: Process, sampler: str, time_grid: str | None):
    works = offered(process)
    if sampler not in works or (time_grid is not None and time_grid not in works[sampler]):
        lines = "; ".join(f"{name} ({', '.join(grids)})" for name, grids in works.items())
        raise UserError(
            f"no scheduler of diffusers takes the steps of sampler {sampler} on the time grid {time_grid or 'uniform'} "
            f"for this noise process: use one of {lines}"
        )
    scheduler, settings = _recipe(process, sampler)
    grid = works[sampler][time_grid or next(iter(works[sampler]))]
    if process.learned:
        settings = settings | {"variance_type": "learned_range"}
    if scheduler in (SOLVER, UNIPC):
        grid = grid | {"steps_offset": 1}  # no matter on these grids
    common = {"num_train_timesteps": NUM_TRAIN_TIMESTEPS}
    return stock_class("scheduler", scheduler)(**common, **process.settings, **settings, **grid)


# ---- processes in diffusers' words ----------------------------------------------------------------------------------

_NAMED: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


def _trained(noise: "NoiseOptions") -> Process:
    """The process that a model was trained with."""
    if noise.process == "flow":
        return _flow(noise.shift)
    if noise.process == "karras":
        return _karras(noise.shift * VarianceExploding.sigma_min, noise.shift * VarianceExploding.sigma_max)
    settings: dict[str, Any] = {"prediction_type": noise.prediction_type}
    schedule = SCHEDULES[noise.process](noise.shift)
    assert isinstance(schedule, DiscreteVP)
    alphas_cumprod = schedule.alphas_cumprod.numpy()
    if noise.process in _NAMED and noise.shift == 1:
        settings |= _NAMED[noise.process]
    else:
        settings["trained_betas"] = (1 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])).tolist()
    if noise.zero_terminal_snr:  # diffusers rescales, and keeps the last of them just above 0 where it divides by it
        settings["rescale_betas_zero_snr"] = True
    return Process("tabled", settings, _ratio(alphas_cumprod[-1], noise.zero_terminal_snr), noise.learned_variance)


def _read(scheduler: Any) -> Process:
    """The process of a stock scheduler. Raises: UserError if it is none that we know."""
    config: Mapping[str, Any] = scheduler.config
    if config.get("use_flow_sigmas"):
        return _flow(config["flow_shift"])
    if "sigma_data" in config:
        return _karras(config["sigma_min"], config["sigma_max"])
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(f"the noise process of {type(scheduler).__name__} is not known, so its sampler stays")
    names = ("prediction_type", "beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr")
    settings = {name: config[name] for name in names if config.get(name) not in (None, False)}
    largest = _ratio(scheduler.alphas_cumprod[-1].item(), "rescale_betas_zero_snr" in settings)
    return Process("tabled", settings, largest, config.get("variance_type") in ("learned", "learned_range"))


def _ratio(alpha_squared: float, zero_snr: bool) -> float:
    """sigma / alpha."""
    return float("inf") if zero_snr or not alpha_squared else ((1 - alpha_squared) / alpha_squared) ** 0.5


def _flow(shift: float) -> Process:
    return Process("flow", {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift})


def _karras(smallest: float, largest: float) -> Process:
    sigmas = {"sigma_min": smallest, "sigma_max": largest, "sigma_data": 1.0, "rho": VarianceExploding.rho}
    return Process("karras", {"prediction_type": "v_prediction", **sigmas})
