"""The JSON schema of a project file, for editors: `python -m ldm.config.json_schema > configs/schema.json`.

With `# yaml-language-server: $schema=schema.json` as the first line of a file, editors complete and explain its keys.
The explanations are the texts below the fields in `settings.py`, which --help shows too.
"""

import json

from pydantic.json_schema import models_json_schema

from ldm.config.settings import PARTS, RunSettings, Settings

_BLOCKS = {
    "clip": "Settings of `ldm train clip`: text and image encoder.",
    "vae": "Settings of `ldm train vae`: the autoencoder.",
    "ldm": "Settings of `ldm train ldm`: the denoiser, its noise process and its sampling.",
}


def schema() -> dict:
    """JSON schema (draft 2020-12) of a project file: `extends`, the shared keys, and the block of each part."""
    classes: list[type[Settings]] = [RunSettings, *PARTS.values()]
    references, document = models_json_schema([(each, "validation") for each in classes])
    definitions = document["$defs"]
    for definition in definitions.values():
        for entry in definition["properties"].values():
            entry.pop("title", None)
            if "$ref" in entry:
                entry.pop("default", None)  # the section's own keys have theirs
    shared = definitions.pop("RunSettings")["properties"]
    blocks = {part: {**references[each, "validation"], "description": _BLOCKS[part]} for part, each in PARTS.items()}
    extends = {"type": "string", "description": "Another YAML file to start from, relative to this one."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An ldm project",
        "type": "object",
        "additionalProperties": False,
        "properties": {"extends": extends, **shared, **blocks},
        "$defs": definitions,
    }


def text() -> str:
    """The content of configs/schema.json."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(), end="")
