"""Documented name of `ldm.formats.decoding` and `ldm.formats.image_arrays` up to version 0.2."""

from ldm.formats.decoding import *  # noqa: F403
from ldm.formats.image_arrays import *  # noqa: F403
