"""Documented name of `ldm.formats.folder` up to version 0.2."""

from ldm.formats.folder import *  # noqa: F403
