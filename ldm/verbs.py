"""Documented name of `ldm.pipelines.editing` up to version 0.1."""

from ldm.pipelines.editing import *  # noqa: F403
