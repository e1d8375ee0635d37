"""Makes a torchvision usable whose compiled operators do not load, as with a CUDA build beside a CPU torch.

Such a torchvision is worse than none: `import torchvision` fails, and with it transformers, diffusers and timm, which
import it when they find it. All that is missing are the schemas of two operators that nothing here calls. Declaring
them is enough for torchvision to import; where its operators load, or where it is not installed, nothing is done.
"""

import importlib
import importlib.util
import sys
from typing import Literal

State = Literal["absent", "matching", "patched"]
OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_library = None  # the declared schemas live as long as this object


def patch_torchvision() -> State:
    """Call before the first import of transformers, diffusers or open_clip; calling again does no harm.

    Returns: "absent" (not installed), "matching" (its operators load) or "patched" (their schemas were declared).
    Raises: whatever importing torchvision raises for any other reason.
    """
    global _library
    if importlib.util.find_spec("torchvision") is None:
        return "absent"
    if _library is not None:
        return "patched"
    try:
        importlib.import_module("torchvision")
        return "matching"
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    import torch

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    _library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        _library.define(operator + SCHEMA)
    importlib.import_module("torchvision")
    return "patched"
