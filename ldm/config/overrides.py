"""The command line of the trainers: CONFIG.yaml, dotted overrides and five flags.

The overrides become a nested dictionary of what was given, converted by the types of the settings; `loading` merges
and validates it, so a range error on the command line reads like one in a file.
"""

import os
import re
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, overload

from ldm.config.introspection import nearest, paths
from ldm.config.loading import load, to_yaml
from ldm.config.settings import PARTS, ClipSettings, LdmSettings, RunSettings, VaeSettings
from ldm.config.yaml_io import shortened
from ldm.utils.errors import UserError

_FLAGS: dict[str, Any] = {"resume": str, "allow_changed": list[str], "print_config": bool, "dry_run": bool}
_USAGE = """\
usage: {program} CONFIG.yaml [--SETTING VALUE ...] [--output-dir DIR] [--resume auto|never|PATH]
       {pad} [--allow-changed NAME ...] [--print-config] [--dry-run] [--help]

  --output-dir DIR           the run folder (default: runs/<name>/{part})
  --resume auto|never|PATH   resume from the run's latest valid checkpoint (auto), start over, or resume from PATH
  --allow-changed NAME ...   settings that may differ from the checkpoint's, though that makes it another training
  --print-config             print the resolved settings as YAML and exit
  --dry-run                  report parameters, memory, FLOPs, steps and time, and exit

settings{source}; a list is 64 128 or [64, 128], a switch is --x or --no-x:"""


@dataclass(frozen=True)
class Invocation:
    """What the command line says about this one start; the settings say the rest."""

    resume: str = "auto"  # "auto", "never", or the folder of a checkpoint
    allow_changed: tuple[str, ...] = ()  # settings that may differ from the checkpoint's
    dry_run: bool = False
    config: Path | None = None  # the project file, for those who look up another part's block


@overload
def parse(part: Literal["clip"], argv: Sequence[str] | None = None) -> tuple[ClipSettings, Invocation]: ...
@overload
def parse(part: Literal["vae"], argv: Sequence[str] | None = None) -> tuple[VaeSettings, Invocation]: ...
@overload
def parse(part: Literal["ldm"], argv: Sequence[str] | None = None) -> tuple[LdmSettings, Invocation]: ...
@overload
def parse(part: str, argv: Sequence[str] | None = None) -> tuple[RunSettings, Invocation]: ...
def parse(part: str, argv: Sequence[str] | None = None) -> tuple[RunSettings, Invocation]:
    """Settings and invocation of `train_<part>.py`.

    Args:
        part: "clip", "vae" or "ldm".
        argv: the arguments after the program's name; None = those of this process.

    Raises: UserError (one line) for anything wrong; SystemExit(0) after --help and --print-config.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):
        print(usage(part, next((Path(a) for a in argv if a.endswith((".yaml", ".yml"))), None)))
        raise SystemExit(0)
    given, files = _parse(part, argv, _FLAGS)
    if not files:
        raise UserError(f"CONFIG.yaml is missing: give a file such as configs/glyphs.yaml first; {_see_help(part)}")
    _refuse(part, files[1:])
    config, resume = Path(files[0]), os.path.expanduser(given.pop("resume", "auto"))
    allow_changed = tuple(given.pop("allow_changed", ()))
    print_config, dry_run = given.pop("print_config", False), given.pop("dry_run", False)
    if resume not in ("auto", "never") and not Path(resume).is_dir():
        raise UserError(f"--resume: must be auto, never or the folder of a checkpoint, got {resume!r}")
    settings = load(part, config, given)
    if print_config:
        print(to_yaml(settings), end="")
        raise SystemExit(0)
    return settings, Invocation(resume, allow_changed, dry_run, config)


def parse_project(argv: Sequence[str], flags: dict[str, Any]) -> tuple[dict, list[str]]:
    """Settings of a project file, nested, and the words that belong to no option: of `ldm train FOLDER`.

    Args:
        argv: such as ['photos', '--data.resolution', '32', '--vae.train.num_steps', '50', '--minutes', '60'].
        flags: name -> type of the options that are no settings; their values are in the dictionary too.
    Raises: UserError for unknown names and wrong types.
    """
    return _parse("", argv, flags)


def parse_overrides(part: str, overrides: Sequence[str]) -> dict:
    """['--optim.lr', '2e-4'] as {'optim': {'lr': 2e-4}}. Raises: UserError for unknown names and wrong types."""
    given, others = _parse(part, overrides, {})
    _refuse(part, others)
    return given


def usage(part: str, config: Path | None = None) -> str:
    """The text of --help: usage, flags, and every setting with its value and its explanation, one line each."""
    program = f"ldm train {part}"
    settings = load(part, config) if config is not None and config.is_file() else PARTS[part]()
    source = f" and their values in {config}" if config else " and their defaults"
    lines = [_USAGE.format(program=program, pad=" " * len(program), part=part, source=source)]
    for path, field in paths(PARTS[part]):
        value: Any = settings
        for name in path.split("."):
            value = getattr(value, name)
        shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if path != "output_dir":
            lines.append(f"  {f'--{path} {shown:.60}':<46} {' '.join((field.description or '').split())}".rstrip())
    return "\n".join(lines)


# ---- from words to values ------------------------------------------------------------------------------------------


def _parse(part: str, argv: Sequence[str], flags: dict[str, Any]) -> tuple[dict, list[str]]:
    """The options given, nested by their dots, and the words that belong to none."""
    types = _types(part) | flags
    given: dict = {}
    others, words = [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            others.append(word)
            continue
        name, equals, text = word[2:].partition("=")
        path, negated = _path(part, name, types)
        values = [text] if equals else []
        while words and not words[0].startswith("--") and _takes(types[path], values, words[0]):
            values.append(words.pop(0))
        *owners, key = path.split(".")
        section = given
        for owner in owners:
            section = section.setdefault(owner, {})
        try:
            section[key] = False if negated else _value(path, types[path], values)
        except ValueError as error:
            raise UserError(f"{error}; {_see_help(part)}") from None
    return given, others


def _types(part: str) -> dict[str, Any]:
    """Dotted path -> type of the settings of a stage; for "" of a project file, the blocks of its stages included."""
    if part:
        return {path: field.annotation for path, field in paths(PARTS[part])}
    types = {path: field.annotation for path, field in paths(RunSettings) if path != "output_dir"}
    return types | {f"{part}.{path}": kind for part in PARTS for path, kind in _types(part).items()}


def _path(part: str, name: str, types: dict[str, Any]) -> tuple[str, bool]:
    """The dotted path that an option names, and whether it is a switch turned off. Raises: UserError if it is none."""
    path = name.replace("-", "_")
    if path in types:
        return path, False
    owner, dot, key = path.rpartition(".")
    switch = f"{owner}{dot}{key.removeprefix('no_')}"
    if types.get(switch) is bool:
        return switch, True
    beside = [known.rpartition(".")[2] for known in types if known.rpartition(".")[0] == owner]
    near = next((f"{owner}{dot}{near}" for near in [nearest(key, beside)] if near), None)
    near = near or next((known for known in types if known.rpartition(".")[2] == key), None) or nearest(path, types)
    raise UserError(f"--{name}: unknown option; " + (f"did you mean --{near}?" if near else _see_help(part)))


def _takes(annotation: Any, values: list[str], word: str) -> bool:
    """Whether an option that has `values` takes one more word."""
    if annotation is bool:
        return not values and word.lower() in ("true", "false")
    several = _several(annotation)
    if not values or not several:
        return not values
    if values[0].startswith("["):
        return not values[-1].endswith("]")
    if _numbers(several) and not re.fullmatch(r"[-+.,\de]*\d,?", word):  # it may be a folder
        return False
    return get_origin(several) is list or len(values) < len(get_args(several))


def _several(annotation: Any) -> Any:
    """A list or tuple, or the one among the types of `int | tuple[int, int]`; None of another type."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((one for one in members if get_origin(one) in (list, tuple)), None)


def _numbers(several: Any) -> bool:
    """Whether all members of a list or tuple are numbers."""
    members = (get_args(each)[0] if get_origin(each) is Annotated else each for each in get_args(several))
    return all(each in (int, float) for each in members)


def _unbracketed(several: Any, values: list[str]) -> list[str]:
    """The members of "[64, 128]", as in YAML, or of numbers such as "64,128"; other words, and texts, as they are."""
    text = " ".join(values)
    bracketed = str not in get_args(several) and text.startswith("[") and text.endswith("]")
    return text.strip("[]").replace(",", " ").split() if bracketed or _numbers(several) else values


def _value(path: str, annotation: Any, values: list[str]) -> Any:
    """The words as a value of a setting's type. Raises: ValueError."""
    if several := _several(annotation):
        values = _unbracketed(several, values)
        annotation = several if len(values) > 1 else annotation
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is list:
        return [_scalar(path, inner[0], value) for value in values]
    if origin is tuple:
        if len(values) != len(inner):
            raise ValueError(f"wrong count for argument '--{path}'. Expected {len(inner)} values, got {len(values)}")
        return [_scalar(path, each, value) for each, value in zip(inner, values, strict=True)]
    if annotation is bool and not values:
        return True
    if not values:
        raise ValueError(f"Missing value for argument '--{path}'")
    return _scalar(path, annotation, values[0])


def _scalar(path: str, annotation: Any, text: str) -> Any:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _scalar(path, inner[0], text)
    if origin in (Union, types.UnionType):  # X | None
        return None if text in ("None", "null") else _scalar(path, inner[0], text)
    if annotation is bool or origin is Literal:
        choices = {"true": True, "false": False} if annotation is bool else {str(each): each for each in inner}
        text = text.lower() if annotation is bool else text
        if text not in choices:
            allowed = ", ".join(choices)
            raise ValueError(f"invalid choice {shortened(text)} for argument '--{path}', choose from {allowed}")
        return choices[text]
    try:
        return annotation(text) if annotation in (int, float) else text
    except ValueError:
        wanted = "a whole number" if annotation is int else "a number"
        raise ValueError(f"--{path}: must be {wanted}, got {shortened(text)}") from None


def _refuse(part: str, words: Sequence[str]) -> None:
    if words:
        said = " ".join(words)
        raise UserError(f"Unrecognized options: {said if len(said) <= 200 else said[:200] + '...'}; {_see_help(part)}")


def _see_help(part: str) -> str:
    return f"see ldm train {part} --help" if part else "see ldm train --help"
