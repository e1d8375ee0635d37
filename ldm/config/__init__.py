"""Every setting, its range, and how it is read."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`from ldm.config import DataOptions`: the settings by their documented place, read when they are asked for."""
    if name.startswith("_"):
        raise AttributeError(name)
    from ldm.config import settings

    return getattr(settings, name)
