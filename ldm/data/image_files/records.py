"""Documented name of `ldm.formats.records` up to version 0.2."""

from ldm.formats.records import *  # noqa: F403
