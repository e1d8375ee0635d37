"""Documented name of `ldm.apps.font.font_file` up to version 0.1."""

from ldm.apps.font.font_file import build_font

__all__ = ["build_font"]
