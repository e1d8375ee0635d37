"""Every setting, its range, and how it is read."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """`from ldm.config import DataOptions`: the settings by their documented place, read when they are asked for."""
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(importlib.import_module("ldm.config.settings"), name)
