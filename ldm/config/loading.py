"""Reading and writing settings: YAML with `extends`, overrides, and errors in one line.

A project file has shared keys (the fields of `RunSettings`) and one block per part:

    extends: base.yaml          # relative to this file; this file wins key by key, lists are replaced whole
    data: {resolution: 64}      # for all three parts
    ldm: {optim: {lr: 6e-4}}    # for train_ldm.py alone

Layers are merged as plain dictionaries (base file, file, block, command line) and validated once, so an error in any
of them is reported in the same words, by its dotted path.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, overload

from pydantic import ValidationError

from ldm.config.introspection import paths, section, unknown
from ldm.config.settings import PARTS, ClipSettings, LdmSettings, RunSettings, Settings, VaeSettings
from ldm.config.yaml_io import dump, merge, read, shortened
from ldm.utils.errors import UserError
from ldm.utils.file_names import windows_objection

_MAX_ERRORS = 5
WINDOWS = os.name == "nt"
_LONGEST_NAME = 200  # of a key in a message, or of a file that is extended
Layers = list[tuple[str, Any]]  # (label of errors in it, what it sets), the later wins
Overrides = dict[str, Any] | None


@overload
def load(part: Literal["clip"], path: Path | str, overrides: Overrides = None) -> ClipSettings: ...
@overload
def load(part: Literal["vae"], path: Path | str, overrides: Overrides = None) -> VaeSettings: ...
@overload
def load(part: Literal["ldm"], path: Path | str, overrides: Overrides = None) -> LdmSettings: ...
@overload
def load(part: str, path: Path | str, overrides: Overrides = None) -> RunSettings: ...
def load(part: str, path: Path | str, overrides: Overrides = None) -> RunSettings:
    """Settings of one part of a project file.

    Args:
        part: "clip", "vae" or "ldm".
        path: the YAML file.
        overrides: what wins over the file, nested: {"optim": {"lr": 2e-4}}; see `overrides.parse_overrides`.

    Returns: a frozen `ClipSettings`, `VaeSettings` or `LdmSettings`; `name` is the file's stem unless set.

    Raises: UserError: one line naming up to five errors, also those in the blocks of the other parts.
    """
    path = Path(path)
    raw = read(path)
    blocks = {name: raw.pop(name, None) for name in PARTS}
    errors = list(_foreign_keys(raw))
    shared = {key: value for key, value in raw.items() if key in RunSettings.model_fields}
    shared.setdefault("name", path.stem)
    settings = RunSettings()
    for name in PARTS:
        if name != part and not blocks[name]:
            continue  # its shared keys are checked through `part`
        layers: Layers = [("", shared), (f"{name}.", blocks[name])]
        if name == part and overrides:
            layers.append(("--", overrides))
        try:
            validated = _validate(PARTS[name], layers)
            settings = validated if name == part else settings
        except ValidationError as error:
            errors += _sentences(error, PARTS[name], layers)
    if errors:
        raise _summary(path, list(dict.fromkeys(errors)))
    return settings


def _summary(path: Path, errors: list[str]) -> UserError:
    more = f"; and {len(errors) - _MAX_ERRORS} more" if len(errors) > _MAX_ERRORS else ""
    where = "" if all(error.startswith("--") for error in errors) else f"{path}: "
    message = where + "; ".join(errors[:_MAX_ERRORS]) + more
    return UserError("".join(c if c.isprintable() else "?" for c in message))


def run_dir(settings: RunSettings, part: str) -> Path:
    """The run folder: `output_dir`, else runs/<name>/<part>. Raises: UserError where Windows takes no such name."""
    if settings.output_dir is not None:
        return settings.output_dir
    for one in re.split(r"[\\/]", settings.name) if WINDOWS else ():
        if objection := windows_objection(one):
            raise UserError(f"name: {one!r} {objection}, which Windows allows no folder: choose another --name")
    return Path("runs") / settings.name / part


def part_of(settings: RunSettings) -> str:
    """The part ("clip", "vae", "ldm") that these settings are of."""
    return next(part for part, kind in PARTS.items() if type(settings) is kind)


def to_yaml(settings: RunSettings) -> str:
    """A project file that `load` reads back to equal settings (of this part; it names no others)."""
    values = settings.model_dump(mode="json")
    shared = {key: values.pop(key) for key in RunSettings.model_fields}
    return dump({**shared, part_of(settings): values})


# ---- validation ----------------------------------------------------------------------------------------------------


def _skeleton(kind: type[Settings]) -> dict:
    """Nested empty dictionaries: merged under a file, they make `optim:` with nothing below it an empty section."""
    sections = {name: section(field.annotation) for name, field in kind.model_fields.items()}
    return {name: _skeleton(inner) for name, inner in sections.items() if inner}


def _validate(kind: type[RunSettings], layers: Layers) -> RunSettings:
    merged: Any = _skeleton(kind)
    for _, layer in layers:
        merged = merge(merged, layer)
    # JSON in strict mode: "3" is no number and true is no count, yet a list is a tuple and a string a path
    return kind.model_validate_json(json.dumps(merged, default=str), strict=True)


def _foreign_keys(raw: dict) -> Iterator[str]:
    allowed = [*RunSettings.model_fields, *PARTS, "extends"]
    for key in raw.keys() - set(allowed):
        owners = [part for part, kind in PARTS.items() if key in kind.model_fields]
        if owners:
            yield f"{key}: belongs inside the block of a part: {' or '.join(f'{part}.{key}' for part in owners)}"
        else:
            yield unknown(key[:_LONGEST_NAME], key, allowed, [path for path, _ in paths(RunSettings)])


def _sentences(error: ValidationError, kind: type[Settings], layers: Layers) -> Iterator[str]:
    """One short sentence for each error, its path as the user wrote it: `ldm.optim.lr`, `optim.lr` or `--optim.lr`."""
    for each in error.errors(include_url=False):
        location = each["loc"]
        label = _origin(location, layers)
        path = f"{label}{'.'.join(map(str, location))}".rstrip(".")[:_LONGEST_NAME]
        if each["type"] == "extra_forbidden":
            owner = _owner(kind, location)
            yield unknown(path, str(location[-1]), list(owner.model_fields), [p for p, _ in paths(kind)])
        elif each["type"] == "value_error":
            yield f"{path}: {each['msg'].removeprefix('Value error, ')}"
        elif each["type"] == "missing":
            yield f"{path.rpartition('.')[0]}: has too few values, got {shortened(each['input'])}"
        elif each["type"] == "model_type":
            yield f"{path}: must be a section of 'key: value' lines, got {shortened(each['input'])}"
        else:
            yield f"{path}: {each['msg'].replace('Input should', 'must')}, got {shortened(each['input'])}"


def _origin(location: tuple, layers: Layers) -> str:
    """Label of the uppermost layer that holds the faulty value (or most of the way to it)."""

    def depth(layer: Any) -> int:
        steps = 0
        for step in location:
            if not isinstance(layer, dict) or step not in layer:
                break
            layer, steps = layer[step], steps + 1
        return steps

    return max(reversed(layers), key=lambda entry: depth(entry[1]))[0]


def _owner(kind: type[Settings], location: tuple) -> type[Settings]:
    for step in location[:-1]:
        kind = section(kind.model_fields[step].annotation) or kind
    return kind
