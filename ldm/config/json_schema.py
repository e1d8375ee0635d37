"""The JSON schema of a project file, for editors: `python -m ldm.config.json_schema > configs/schema.json`.

With `# yaml-language-server: $schema=schema.json` as the first line of a file, editors complete and explain its keys.
The explanations are the comments beside the fields in `config.py`: one text for readers of the code, of --help and
of the editor.
"""

import functools
import inspect
import json
import re

from pydantic.json_schema import models_json_schema

from ldm.config.introspection import section
from ldm.config.settings import PARTS, RunSettings, Settings

_BLOCKS = {
    "clip": "Settings of train_clip.py: the text and image towers.",
    "vae": "Settings of train_vae.py: the autoencoder.",
    "ldm": "Settings of train_ldm.py: the U-Net, its noise and its sampling.",
}


def schema() -> dict:
    """JSON schema (draft 2020-12) of a whole project file: `extends`, the shared keys, and the block of each part."""
    kinds: list[type[Settings]] = [RunSettings, *PARTS.values()]
    references, document = models_json_schema([(kind, "validation") for kind in kinds])
    definitions = document["$defs"]
    for kind in _closure(kinds):
        properties = definitions[kind.__name__]["properties"]
        for name, entry in properties.items():
            entry.pop("title", None)
            if "$ref" in entry:
                entry.pop("default", None)  # the section's own keys say theirs
            if name in comments(kind):
                entry["description"] = comments(kind)[name]
    shared = definitions.pop("RunSettings")["properties"]
    blocks = {part: {**references[kind, "validation"], "description": _BLOCKS[part]} for part, kind in PARTS.items()}
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


@functools.cache
def comments(kind: type[Settings]) -> dict[str, str]:
    """Field name -> the comment beside it, or on the lines above it, in the source of the class and its bases."""
    found: dict[str, str] = {}
    for cls in reversed([cls for cls in kind.__mro__ if issubclass(cls, Settings)]):
        above: list[str] = []
        for line in inspect.getsource(cls).splitlines():
            if match := re.fullmatch(r"\s+#\s*(.*)", line):
                above.append(match[1])
                continue
            match = re.match(r"    (\w+):[^#]*(?:#\s*(.*))?$", line)
            words = " ".join([*above, (match[2] or "") if match else ""]).strip()
            if match and match[1] in kind.model_fields and words:
                found[match[1]] = words
            above = []
    return found


def comment_of(kind: type[Settings], path: str) -> str:
    """The comment of the setting at a dotted path, "" if it has none."""
    *owners, name = path.split(".")
    for owner in owners:
        kind = section(kind.model_fields[owner].annotation) or kind
    return comments(kind).get(name, "")


def _closure(kinds: list[type[Settings]]) -> list[type[Settings]]:
    """These settings classes and all their sections, each once."""
    found = list(kinds)
    for kind in found:  # grows while it is walked
        inner = [section(field.annotation) for field in kind.model_fields.values()]
        found += [one for one in dict.fromkeys(inner) if one and one not in found]
    return found


if __name__ == "__main__":
    print(text(), end="")
