"""Documented name of `ldm.formats.decoding` up to version 0.2."""

from ldm.formats.decoding import *  # noqa: F403
