"""The classes of diffusers and transformers that a model folder may name, each imported from its own file.

`from diffusers import UNet2DConditionModel` runs the files of whole packages, which import about a hundred other models
and all of scipy.stats: more than half of the time between the shell and the first image. Here a few packages get lazy
stand-ins: their own code runs only when somebody asks them for a name, and then they are complete.
"""

import importlib
import importlib.util
import sys
from typing import Any

_LAZY = (
    "scipy.stats",  # diffusers imports it where it is installed, for one option of its schedulers
    "transformers.models",
    "diffusers.models.unets",
    "diffusers.models.transformers",
    "diffusers.models.autoencoders",
    "diffusers.hooks",
)
_SCHEDULERS = {
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
    "UniPCMultistepScheduler": "unipc_multistep",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler_discrete",
    "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete",
    "HeunDiscreteScheduler": "heun_discrete",
    "PNDMScheduler": "pndm",
    "EDMDPMSolverMultistepScheduler": "edm_dpmsolver_multistep",
    "EDMEulerScheduler": "edm_euler",
    "DPMSolverSinglestepScheduler": "dpmsolver_singlestep",
    "DEISMultistepScheduler": "deis_multistep",
    "SASolverScheduler": "sasolver",
    "LMSDiscreteScheduler": "lms_discrete",
    "KDPM2DiscreteScheduler": "k_dpm_2_discrete",
    "KDPM2AncestralDiscreteScheduler": "k_dpm_2_ancestral_discrete",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
}

# component -> class name -> module: nothing else is ever imported because a file says so
CLASSES: dict[str, dict[str, str]] = {
    "vae": {
        "AutoencoderKL": "diffusers.models.autoencoders.autoencoder_kl",
        "AutoencoderTiny": "diffusers.models.autoencoders.autoencoder_tiny",
    },
    "text_encoder": {"CLIPTextModel": "transformers.models.clip.modeling_clip"},
    "tokenizer": {"CLIPTokenizer": "transformers.models.clip.tokenization_clip"},
    "unet": {"UNet2DConditionModel": "diffusers.models.unets.unet_2d_condition"},
    "scheduler": {name: f"diffusers.schedulers.scheduling_{file}" for name, file in _SCHEDULERS.items()},
    "preview": {"AutoencoderTiny": "diffusers.models.autoencoders.autoencoder_tiny"},  # no component of a pipeline
}
# What a training run may hold beside these and an export may not: denoisers and autoencoders of our own, which no other
# package could load, and VQModel, whose decode does not take what the stock pipeline passes
OWN: dict[str, dict[str, str]] = {
    "vae": {
        "IdentityAutoencoder": "ldm.models.identity_autoencoder",
        "VQModel": "diffusers.models.autoencoders.vq_model",
    },
    "unet": {"MLPDenoiser": "ldm.models.mlp", "ConcatenatedUNet": "ldm.models.unet"},
}
LIBRARY = {"text_encoder": "transformers", "tokenizer": "transformers"}  # the others are diffusers'


def stock_class(component: str, name: str) -> type[Any]:
    """The class `name` for `component` ("vae", "unet", ...). Raises KeyError for a class not in `CLASSES` or `OWN`."""
    module = {**CLASSES[component], **OWN.get(component, {})}[name]
    defer_packages()
    return getattr(importlib.import_module(module), name)


def defer_packages() -> None:
    """Have the packages that import much run only when something of them is asked for."""
    for package in _LAZY:
        _defer(package)


def _defer(package: str) -> None:
    """Put a lazy stand-in for `package` into `sys.modules`, unless it is there already.

    Submodules are found through its `__path__`, as usual. The first attribute that is missing runs the package's own
    file in the same module object, so whoever imports the package later gets the whole of it.
    """
    parent, _, name = package.rpartition(".")
    if package in sys.modules or importlib.util.find_spec(parent.partition(".")[0]) is None:
        return
    owner = importlib.import_module(parent)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.loader is None:  # a version without it
        return
    module, execute = importlib.util.module_from_spec(spec), spec.loader.exec_module
    ran = False

    def load_rest(attribute: str):
        nonlocal ran
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if not ran:
            ran = True
            execute(module)
        real = sys.modules[package]  # transformers' packages replace themselves there
        setattr(owner, name, real)
        if real is not module:
            return getattr(real, attribute)
        if attribute not in module.__dict__:
            raise AttributeError(f"module {package!r} has no attribute {attribute!r}")
        return module.__dict__[attribute]

    module.__dict__["__getattr__"] = load_rest
    sys.modules[package] = module
    setattr(owner, name, module)
