"""Text-conditioned latent diffusion, trained from scratch: a text encoder, an autoencoder and a U-Net.

`from ldm import load_pipeline` is all most users need; `Pipeline.from_pretrained` is how diffusers spells it. Importing
this package is cheap: torch is loaded on first use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.pipelines.loading import load_pipeline
    from ldm.pipelines.pipeline import Pipeline

__all__ = ["Pipeline", "__version__", "load_pipeline"]
__version__ = "0.2.0"


def __getattr__(name: str):
    if name not in ("Pipeline", "load_pipeline"):
        raise AttributeError(f"module 'ldm' has no attribute {name!r}")
    from ldm.utils.runtime import prepare_threads
    from ldm.utils.torchvision_compat import patch_torchvision

    prepare_threads()  # has to come before torch
    patch_torchvision()  # has to come before diffusers
    from ldm.pipelines import loading

    return getattr(loading, name)


def __dir__() -> list[str]:
    return __all__
