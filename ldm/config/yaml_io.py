"""Strict YAML in and out: 1.2 scalars, `extends`, bounds on size and aliases, and faults a person can mend."""

import difflib
import json
import re
from pathlib import Path
from typing import Any

import yaml

from ldm.utils.assets import shipped_configs
from ldm.utils.errors import UserError

_LONGEST_NAME = 200  # of a file that is extended
_MAX_BYTES, _MAX_VALUES = 2**18, 100_000  # of a config file: far more than anybody writes, and read in seconds


def dump(document: dict) -> str:
    """YAML that `load` reads back to the same values."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"


class _Loader(yaml.SafeLoader):
    """Safe YAML with 1.2 scalars (`no` is a string, `2e-4` a number); a key given twice is an error."""

    yaml_implicit_resolvers: dict[str, list] = {}
    yaml_constructors = {
        tag: maker
        for tag, maker in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rsplit(":", 1)[-1] in ("map", "seq", "str", "bool", "null")
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads, and quotes what either YAML version would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


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
_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)


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
        raise UserError(f"{path}: extends: must be the name of one YAML file, got {shortened(base)}")
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


def merge(base: Any, over: Any) -> Any:
    """`over` laid on `base`, key by key; an empty section (None) changes nothing, a list replaces a list."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: merge(base[key], value) if key in base else value for key, value in over.items()}}
    if isinstance(base, dict) and over is not None:
        return over  # the wrong kind; validation names it
    return base if isinstance(base, dict) else over


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
