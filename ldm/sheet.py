"""Documented name of `ldm.utils.image_grid` up to version 0.1."""

from ldm.utils.image_grid import image_grid as sheet
from ldm.utils.image_grid import points_image as points_picture

__all__ = ["points_picture", "sheet"]
