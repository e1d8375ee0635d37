"""Documented name of `ldm.apps.font.vectorize` up to version 0.1."""

from ldm.apps.font.vectorize import Outline, svg, trace

__all__ = ["Outline", "svg", "trace"]
