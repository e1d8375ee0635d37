"""Our samplers in the words of diffusers' schedulers, by the kind of the noise process; without torch.

Which of them a process has, and on which time grids, is said by `ldm.pipelines.diffusers_schedulers`.
"""

from collections.abc import Mapping
from typing import Any

SOLVER, EDM_SOLVER, UNIPC = "DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler", "UniPCMultistepScheduler"
EULER, HEUN, ANCESTRAL = "EulerDiscreteScheduler", "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler"


def _ode(order: int) -> dict[str, Any]:
    return {"solver_order": order, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}


def _sde(order: int) -> dict[str, Any]:
    return _ode(order) | {"algorithm_type": "sde-dpmsolver++"}


def _solvers(scheduler: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """What DPM-Solver++ of every order is."""
    return {
        "dpmpp_2m": (scheduler, _ode(2)),
        "dpmpp_3m": (scheduler, _ode(3)),
        "dpmpp_2m_sde": (scheduler, _sde(2)),
        "ddim": (scheduler, _ode(1)),
        "euler": (scheduler, _ode(1)),
        "ddpm": (scheduler, _sde(1)),
        "euler_ancestral": (scheduler, _sde(1)),
    }


# kind of process -> our sampler -> scheduler and its settings
RECIPES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "flow": _solvers(SOLVER) | {"unipc": (UNIPC, {"solver_order": 2})},
    "karras": _solvers(EDM_SOLVER) | {"euler": ("EDMEulerScheduler", {})},
    "tabled": {
        **{name: recipe for name, recipe in _solvers(SOLVER).items() if name.startswith("dpmpp")},
        "unipc": (UNIPC, {"solver_order": 2}),
        "ddpm": ("DDPMScheduler", {"clip_sample": False}),
        "ddpm_large": ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
        "ddim": ("DDIMScheduler", {"clip_sample": False}),
        "euler": (EULER, {}),
        "heun_edm": (HEUN, {}),
        "euler_ancestral": (ANCESTRAL, {}),
    },
}


def kind_of(config: Mapping[str, Any]) -> str:
    """The kind of process that a scheduler with this config is for."""
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return "flow"
    return "karras" if "sigma_data" in config else "tabled"
