"""Files of untrusted origin, validated before a library opens them and before memory is allocated for them.

A model folder may hold regular files of sane size inside the folder, settings that name no code to download, and
numbers that the weights beside them confirm: one wrong number in a few bytes of JSON can ask for all memory there is.
"""

import json
import math
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.utils.errors import UserError

MAX_TEXT = 64 * 2**20  # bytes of a JSON, YAML or text file
MAX_HEADER = 16 * 2**20  # bytes of a safetensors header; that of Stable Diffusion has 0.1 MiB
MIN_LIMIT = 4096  # a number in the settings of a network up to this needs no tensor that is as long
MAX_STEPS = 100_000  # no schedule is longer
# keys by which the libraries download code, or other weights than those in the folder
CODE = ("auto_map", "custom_pipeline", "trust_remote_code", "quantization_config", "attn_implementation")
OTHERS = ("adapter_config.json",)  # files that would bring them in


def check_files(folder: Path, components: dict[str, Path]) -> None:
    """Raises: UserError if something below a component is no regular file in `folder`, or a text file is huge."""
    roots = [folder.resolve()]
    for snapshot in [folder, *folder.parents]:  # of the Hub client's cache, whose files are links to its blobs
        if snapshot.parent.name == "snapshots":
            roots.append(snapshot.parents[1].resolve() / "blobs")
    for path in [*folder.glob("*.json"), *(each for part in components.values() for each in [part, *part.rglob("*")])]:
        real = path.resolve()
        if not any(real.is_relative_to(root) for root in roots):
            raise UserError(f"{path} leads out of its model folder, to {real}: nothing there is read")
        if path.name in OTHERS:
            raise UserError(f"{path} would bring in other weights: remove it, and keep the merged weights alone")
        status = real.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise UserError(f"{path} is no ordinary file")
        if path.suffix in (".json", ".txt") and status.st_size > MAX_TEXT:
            raise UserError(f"{path} has {status.st_size:,} bytes; {MAX_TEXT:,} are allowed")


def read_text(path: Path) -> str:
    """The text of a file of sane size. Raises: OSError, or ValueError for what is no UTF-8 or too large."""
    with path.open("rb") as stream:
        data = stream.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise ValueError(f"more than {MAX_TEXT:,} bytes")
    return data.decode("utf-8")


def check_code(path: Path, settings: dict[str, Any]) -> None:
    """Raises: UserError if settings name code to fetch."""
    keys = [key for key in settings if key.lstrip("_") in CODE and settings[key]]
    if keys:
        raise UserError(
            f"{path} has {keys[0]!r}, which can load code from elsewhere; only diffusers' networks are read"
        )


def check_settings(config: Path) -> dict[str, Any]:
    """The settings of a network of any class of transformers, deeper ones included, before it is built without weights.

    Raises: UserError: if they name code to fetch, or more layers of a kind than there are tensors beside them.
    """
    settings = read_json(config)
    tensors = len(tensor_shapes(config.parent))
    todo = [settings]
    while todo:
        part = todo.pop()
        check_code(config, part)
        depth = max((size for key, value in part.items() if "layers" in key for size in _numbers(value)), default=0)
        if depth > max(tensors, 1):
            raise UserError(f"{config} describes more layers than there are tensors beside it ({tensors})")
        todo += [value for value in part.values() if isinstance(value, dict)]
    return settings


def check_schedule(path: Path, settings: dict[str, Any]) -> None:
    """Raises: UserError if a number in the settings of a scheduler is beyond use."""
    _check_numbers(path, settings, MAX_STEPS, "no schedule is longer than")


def check_network(config: Path, settings: dict[str, Any]) -> None:
    """Raises: UserError if a network's settings ask for more or longer layers than the weights beside them have."""
    check_code(config, settings)
    shapes = list(tensor_shapes(config.parent).values())
    longest = max((length for shape in shapes for length in shape), default=0)
    _check_numbers(config, settings, max(longest, MIN_LIMIT), "the weights beside it hold nothing longer than")
    depths = [max(_numbers(value), default=1) for key, value in settings.items() if "layers" in key]
    blocks = max((len(value) for value in settings.values() if isinstance(value, list)), default=1)
    if math.prod(depths) * max(blocks, 1) > max(len(shapes), 1):
        raise UserError(f"{config} describes more layers than there are tensors beside it ({len(shapes)})")


def tensor_shapes(component: Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor in the safetensors files of a folder, from their headers alone.

    Raises: UserError if a header cannot be true, or an index names files elsewhere.
    """
    shapes: dict[str, list[int]] = {}
    for index in component.glob("*.index.json"):
        listed = json.loads(read_text(index)).get("weight_map", {})
        if strange := [name for name in set(listed.values()) if name != Path(name).name]:
            raise UserError(f"{index} names {strange[0]!r}: weights must lie beside it")
    for file in sorted(component.glob("*.safetensors")):
        try:
            shapes |= _header(file)
        except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{file} is no complete safetensors file: {error}") from None
    return shapes


def count(component: Path) -> int:
    """Number of weights of a component."""
    return sum(math.prod(shape) for shape in tensor_shapes(component).values())  # a variant has the same names


def _header(file: Path) -> dict[str, list[int]]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(MAX_HEADER, size - 8):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}; {MAX_HEADER:,} are allowed")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
    if [0, *(end for _, end in spans)] != [*(start for start, _ in spans), size - 8 - length]:
        raise ValueError("its tensors do not fill the file one after another: it was cut, or made up")
    shapes = {name: entry["shape"] for name, entry in header.items()}
    if not all(isinstance(each, int) and each >= 0 for shape in shapes.values() for each in shape):
        raise ValueError("a shape must be whole numbers, 0 or more")
    if sum(map(math.prod, shapes.values())) > 2 * size:  # the smallest types take half a byte
        raise ValueError("its header lists more weights than the file has bytes")
    return shapes


def _check_numbers(path: Path, settings: dict[str, Any], most: int, why: str) -> None:
    for key, value in settings.items():
        if (largest := max(_numbers({key: value}), default=0)) > most:
            raise UserError(f"{path}: {key} is {largest:,}, and {why} {most:,}")


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers in a value of JSON, however deep, by their size; names of tokens are no sizes."""
    if isinstance(value, dict):
        value = [each for key, each in value.items() if not key.endswith("_token_id")]
    if isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield abs(value)


def read_json(path: Path) -> dict:
    """The JSON object in `path`. Raises: UserError if it is missing, broken or no object."""
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def read_yaml(path: Path) -> dict:
    """The mapping in the YAML file `path`, {} if there is no such file. Raises: UserError if it is broken."""
    try:
        return parse_yaml(read_text(path), path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from None


def parse_yaml(text: str, source: Path | str) -> dict:
    """The mapping in a YAML text, {} if it is none. Raises: UserError that names the source, if it is broken."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{source} cannot be read as YAML: {error}") from None
    return content if isinstance(content, dict) else {}


def section(document: dict, *names: str) -> dict:
    """A nested section of a document; {} where there is none."""
    for name in names:
        inner = document.get(name)
        document = inner if isinstance(inner, dict) else {}
    return document


def validated(network: Path) -> Path:
    """The folder of one network, after its files and settings are checked. Raises: UserError."""
    check_files(network, {"": network})
    check_network(network / "config.json", read_json(network / "config.json"))
    return network
