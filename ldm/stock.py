"""The stock classes a model folder may name, each imported from its own file.

`from diffusers import UNet2DConditionModel` runs the package files of `diffusers.models.unets`, `.transformers` and
`.autoencoders`, which import about a hundred other models: 3 of the 9 seconds between the shell and the first picture.
Here those packages stand in as lazy ones: their own code runs only when somebody asks them for a name.
"""

import importlib
import importlib.util
import sys

_LAZY = ("diffusers.models.unets", "diffusers.models.transformers", "diffusers.models.autoencoders", "diffusers.hooks")
_SCHEDULERS = {
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
    "UniPCMultistepScheduler": "unipc_multistep",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler_discrete",
    "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete",
    "HeunDiscreteScheduler": "heun_discrete",
    "PNDMScheduler": "pndm",
}

# component -> class name -> module: nothing else is ever imported because a file says so
CLASSES: dict[str, dict[str, str]] = {
    "vae": {"AutoencoderKL": "diffusers.models.autoencoders.autoencoder_kl"},
    "text_encoder": {"CLIPTextModel": "transformers.models.clip.modeling_clip"},
    "tokenizer": {"CLIPTokenizer": "transformers.models.clip.tokenization_clip"},
    "unet": {"UNet2DConditionModel": "diffusers.models.unets.unet_2d_condition"},
    "scheduler": {name: f"diffusers.schedulers.scheduling_{file}" for name, file in _SCHEDULERS.items()},
}
LIBRARY = {"text_encoder": "transformers", "tokenizer": "transformers"}  # the others are diffusers'


def stock_class(component: str, name: str) -> type:
    """The class `name` for `component` ("vae", "unet", ...). Raises KeyError for a class not in `CLASSES`."""
    module = CLASSES[component][name]
    for package in _LAZY:
        _defer(package)
    return getattr(importlib.import_module(module), name)


def _defer(package: str) -> None:
    """Put a lazy stand-in for `package` into `sys.modules`, unless it is there already.

    Submodules are found through its `__path__`, as usual. The first attribute that is missing runs the package's own
    file in the same module object, so whoever imports the package later gets the whole of it.
    """
    if package in sys.modules:
        return
    parent, _, name = package.rpartition(".")
    owner = importlib.import_module(parent)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.loader is None:  # another version of diffusers without it
        return
    module = importlib.util.module_from_spec(spec)

    def load_rest(attribute: str):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        module.__dict__.pop("__getattr__", None)
        spec.loader.exec_module(module)
        return getattr(module, attribute)

    module.__dict__["__getattr__"] = load_rest
    sys.modules[package] = module
    setattr(owner, name, module)
