"""Saving of the components of a model, as diffusers and transformers do."""

import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderTiny


def save_component(component: Any, folder: Path, **options: Any) -> None:
    """`component.save_pretrained`, without the setting that AutoencoderTiny derives and warns of when it is loaded.

    The caller decides which process saves: transformers by itself lets only the first of all do so, whose disk
    the others may not have.
    """
    decides = hasattr(component, "should_save_on_this_rank")
    if decides:
        component.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        component.save_pretrained(str(folder), **options)
    finally:
        if decides:
            del component.should_save_on_this_rank
    if isinstance(component, AutoencoderTiny):
        file = folder / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("block_out_channels", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
