"""Lets a wheel carry the shipped models, the presets and the tested versions inside the package.

An editable install needs no copy of them (`ldm.utils.assets` finds them in the checkout), which is why this is a hook.
"""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CARRIED = {"models": "ldm/models", "configs": "ldm/configs", "constraints.txt": "ldm/constraints.txt"}


class CarryAssets(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        if version != "editable":
            build_data["force_include"] |= CARRIED
