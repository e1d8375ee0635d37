"""Reading and writing settings: YAML with `extends`, command-line overrides, and faults a person can mend.

A project file has shared keys (the fields of `RunSettings`) and one block per part:

    extends: base.yaml          # relative to this file; this file wins key by key, lists are replaced whole
    data: {resolution: 64}      # for all three parts
    ldm: {optim: {lr: 6e-4}}    # for train_ldm.py alone

Layers are merged as plain dictionaries (base file, file, block, command line) and validated once, so a fault in any
of them is told in the same words, by its dotted path.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ldm.config.settings import PARTS, ClipSettings, LdmSettings, RunSettings, Settings, VaeSettings
from ldm.utils.assets import shipped_configs
from ldm.utils.errors import UserError

_MAX_FAULTS = 5
_LONGEST_NAME = 200  # of a key in a message, or of a file that is extended
_MAX_BYTES, _MAX_VALUES = 2**18, 100_000  # of a config file: far more than anybody writes, and read in seconds
Layers = list[tuple[str, Any]]  # (how faults in it are labelled, what it sets), the later wins


@overload
def load(part: Literal["clip"], path: Path | str, overrides: Sequence[str] = ()) -> ClipSettings: ...
@overload
def load(part: Literal["vae"], path: Path | str, overrides: Sequence[str] = ()) -> VaeSettings: ...
@overload
def load(part: Literal["ldm"], path: Path | str, overrides: Sequence[str] = ()) -> LdmSettings: ...
@overload
def load(part: str, path: Path | str, overrides: Sequence[str] = ()) -> RunSettings: ...
def load(part: str, path: Path | str, overrides: Sequence[str] = ()) -> RunSettings:
    """Settings of one part of a project file.

    Args:
        part: "clip", "vae" or "ldm".
        path: the YAML file.
        overrides: as on the command line: ["--optim.lr", "2e-4", "--model.block_out_channels", "32", "64"].

    Returns: a frozen `ClipSettings`, `VaeSettings` or `LdmSettings`; `name` is the file's stem unless set.

    Raises: UserError: one line naming up to five faults, also those in the blocks of the other parts.
    """
    from ldm.config.overrides import parse_overrides  # tyro is only needed where there is a command line

    return resolve(part, path, parse_overrides(part, overrides) if overrides else {})


def resolve(part: str, path: Path | str, overrides: dict) -> RunSettings:
    """As `load`, with the overrides as a nested dictionary."""
    path = Path(path)
    raw = read(path)
    blocks = {name: raw.pop(name, None) for name in PARTS}
    faults = list(_foreign_keys(raw))
    shared = {key: value for key, value in raw.items() if key in RunSettings.model_fields}
    shared.setdefault("name", path.stem)
    settings = RunSettings()
    for name in PARTS:
        if name != part and not blocks[name]:
            continue  # its shared keys are checked through `part`
        layers: Layers = [("", shared), (f"{name}.", blocks[name])]
        if name == part:
            layers.append(("--", overrides))
        try:
            validated = _validate(PARTS[name], layers)
            settings = validated if name == part else settings
        except ValidationError as error:
            faults += _faults(error, PARTS[name], layers)
    if faults:
        faults = list(dict.fromkeys(faults))
        more = f"; and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
        where = "" if all(fault.startswith("--") for fault in faults) else f"{path}: "
        told = where + "; ".join(faults[:_MAX_FAULTS]) + more
        raise UserError("".join(c if c.isprintable() else "?" for c in told))
    return settings


def run_dir(settings: RunSettings, part: str) -> Path:
    """The run folder: `output_dir`, else runs/<name>/<part>."""
    return settings.output_dir if settings.output_dir is not None else Path("runs") / settings.name / part


def part_of(settings: RunSettings) -> str:
    """The part ("clip", "vae", "ldm") that these settings are of."""
    return next(part for part, kind in PARTS.items() if type(settings) is kind)


def to_yaml(settings: RunSettings) -> str:
    """A project file that `load` reads back to equal settings (of this part; it names no others)."""
    values = settings.model_dump(mode="json")
    shared = {key: values.pop(key) for key in RunSettings.model_fields}
    return dump({**shared, part_of(settings): values})


def dump(document: dict) -> str:
    """YAML that `load` reads back to the same values."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


# ---- YAML ----------------------------------------------------------------------------------------------------------

_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"


class _Loader(yaml.SafeLoader):
    """Safe YAML with 1.2 scalars (`no` is a string, `2e-4` a number); a key given twice is an error."""

    yaml_implicit_resolvers: dict[str, list] = {}
    yaml_constructors = {
        tag: maker
        for tag, maker in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rsplit(":", 1)[-1] in ("map", "seq", "str", "bool", "null")
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads, and quotes what either YAML version would take for something else."""

    def ignore_aliases(self, data):
        return True

    def represent_list(self, data):
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", _NUMBER, "-+0123456789."),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(re.sub(r"\.(?=[in])", "", node.value.lower())))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^(?:{_NUMBER})$"), list("-+0123456789."))
_Dumper.add_representer(list, _Dumper.represent_list)


def read(path: Path, seen: tuple[Path, ...] = ()) -> dict:
    """The file as a dictionary with its `extends` chain merged in; nothing but YAML and `extends` is checked."""
    if path.resolve() in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise UserError(f"{seen[0]}: extends goes in a circle ({chain}); remove one of these extends lines")
    raw = _read_one(path, extended_by=seen[-1] if seen else None)
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str) or "\0" in base or len(base) > _LONGEST_NAME:
        raise UserError(f"{path}: extends: must be the name of one YAML file, got {_short(base)}")
    return merge(read(path.parent / base, (*seen, path.resolve())), raw)


def _read_one(path: Path, extended_by: Path | None) -> dict:
    try:
        raw = _document(_text(path))
        # plain values with string keys; refuses a file that contains itself, and unpaired surrogates
        raw = json.loads(json.dumps(raw, ensure_ascii=False).encode())
    except FileNotFoundError:
        raise UserError(_missing(path, extended_by)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a text file ({error}); give a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except (RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a usable YAML file ({type(error).__name__}: {error})") from None
    if not isinstance(raw, dict | None):
        raise UserError(f"{path}: must hold 'key: value' lines, got {type(raw).__name__}")
    return raw or {}


def _text(path: Path) -> str:
    """Raises: OSError, UnicodeDecodeError: for anything but a text file of a size that people write."""
    if path.exists() and not path.is_file():
        raise OSError("not an ordinary file")  # a pipe would be waited for, a device never ends
    with path.open("rb") as stream:
        data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise OSError(f"it has more than {_MAX_BYTES} bytes")
    return data.decode("utf-8-sig")


def _document(text: str) -> Any:
    """What the YAML says. Raises: yaml.YAMLError; ValueError: if aliases make too much of little."""
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    if _written_out(node, {}) > _MAX_VALUES:  # asked before `<<` is followed, which may make as much
        raise ValueError(f"its aliases stand for more than {_MAX_VALUES:,} values")
    return loader.construct_document(node)


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values there are with every alias written out; a short file of aliases of aliases can mean billions."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 1  # while it is counted: it may contain itself
        parts = [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_written_out(part, known) for part in parts)
    return known[id(node)]


def _missing(path: Path, extended_by: Path | None) -> str:
    folders = [path.parent, Path("configs"), *_shipped()]
    folder = next((folder for folder in folders if any(folder.glob("*.yaml"))), None)
    presets = sorted(file.stem for file in folder.glob("*.yaml")) if folder else []
    near = difflib.get_close_matches(path.stem, presets, n=3, cutoff=0.5) or presets[:6]
    hint = (
        "; did you mean " + " or ".join(str(folder / f"{name}.yaml") for name in near) + "?" if folder and near else ""
    )
    return f"{path}: no such config file{f' (extended by {extended_by})' if extended_by else ''}{hint}"


def _shipped() -> list[Path]:
    try:
        return [shipped_configs()]
    except UserError:
        return []


def merge(base, over):
    """`over` laid on `base`, key by key; an empty section (None) changes nothing, a list replaces a list."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: merge(base[key], value) if key in base else value for key, value in over.items()}}
    if isinstance(base, dict) and over is not None:
        return over  # the wrong kind; validation names it
    return base if isinstance(base, dict) else over


# ---- validation ----------------------------------------------------------------------------------------------------


def section(annotation) -> type[Settings] | None:
    """The settings class of a field that is a section, else None."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def paths(kind: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted path, field) of every setting, depth first."""
    for name, field in kind.model_fields.items():
        inner = section(field.annotation)
        if inner:
            yield from paths(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


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


def _faults(error: ValidationError, kind: type[Settings], layers: Layers) -> Iterator[str]:
    """One short sentence for each fault, its path as the user wrote it: `ldm.optim.lr`, `optim.lr` or `--optim.lr`."""
    for fault in error.errors(include_url=False):
        location = fault["loc"]
        label = _origin(location, layers)
        path = f"{label}{'.'.join(map(str, location))}".rstrip(".")[:_LONGEST_NAME]
        if fault["type"] == "extra_forbidden":
            owner = _owner(kind, location)
            yield unknown(path, str(location[-1]), list(owner.model_fields), [p for p, _ in paths(kind)])
        elif fault["type"] == "value_error":
            yield f"{path}: {fault['msg'].removeprefix('Value error, ')}"
        elif fault["type"] == "missing":
            yield f"{path.rpartition('.')[0]}: has too few values, got {_short(fault['input'])}"
        elif fault["type"] == "model_type":
            yield f"{path}: must be a section of 'key: value' lines, got {_short(fault['input'])}"
        else:
            yield f"{path}: {fault['msg'].replace('Input should', 'must')}, got {_short(fault['input'])}"


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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


def unknown(path: str, key: str, names: list[str], elsewhere: Iterable[str] = ()) -> str:
    """'optim.learning_rate: unknown key; did you mean 'lr'? allowed: ...'"""
    near = nearest(key, names) or next((p for p in elsewhere if p.rsplit(".", 1)[-1] == key), None)
    hint = f" did you mean '{near}'?" if near else ""
    return f"{path}: unknown key;{hint} allowed: {', '.join(names)}"


def nearest(key: str, names: Iterable[str]) -> str | None:
    """The name that `key` was probably meant to be: initials (learning_rate: lr), a part of it, or a typo."""
    key = key.replace("-", "_").lower()
    names = list(names)
    for name in names:
        if name == "".join(word[:1] for word in key.split("_")) and "_" in key:
            return name
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.7)
    part = [name for name in names if len(key) > 2 and (key in name.split("_") or f"_{key}_" in f"_{name}_")]
    likely = close or part or difflib.get_close_matches(key, names, n=1, cutoff=0.55)
    return likely[0] if likely else None
