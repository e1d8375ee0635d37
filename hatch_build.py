"""Lets a wheel carry the shipped models and the presets as `ldm/models` and `ldm/configs`.

An editable install needs no copy of them (`ldm.assets` finds them in the checkout), which is why this is a hook.
"""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CarryAssets(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        if version != "editable":
            build_data["force_include"] |= {"models": "ldm/models", "configs": "ldm/configs"}
