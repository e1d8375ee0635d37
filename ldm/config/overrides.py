"""The command line of the trainers: CONFIG.yaml, dotted overrides and six flags.

tyro reads the flags into a nested dictionary that holds only what was given; `settings_io` merges and validates it,
so a range error on the command line reads like one in a file.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Required, overload

from typing_extensions import TypedDict

from ldm.config.introspection import nearest, paths, section
from ldm.config.json_schema import comment_of
from ldm.config.loading import resolve, to_yaml
from ldm.config.settings import PARTS, ClipSettings, LdmSettings, RunSettings, Settings, VaeSettings
from ldm.utils.errors import UserError

_FLAGS = {"resume": str, "allow_changed": list[str], "print_config": bool, "dry_run": bool}
_USAGE = """\
usage: {program} CONFIG.yaml [--SETTING VALUE ...] [--output-dir DIR] [--resume auto|never|PATH]
       {pad} [--allow-changed NAME ...] [--print-config] [--dry-run] [--help]

  --output-dir DIR           where the run is kept (default: runs/<name>/{part})
  --resume auto|never|PATH   continue the run's newest good checkpoint (auto), start anew, or continue this checkpoint
  --allow-changed NAME ...   settings that may differ from the checkpoint's though that makes it another training
  --print-config             print the resolved settings as YAML and exit
  --dry-run                  report parameters, memory, FLOPs, steps and time, and exit

settings{source}; a list takes several values, a switch is --x or --no-x:
"""


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
    given = _tyro(part, argv, with_config=True)
    config, resume = given.pop("config"), os.path.expanduser(given.pop("resume", "auto"))
    allow_changed = tuple(given.pop("allow_changed", ()))
    print_config, dry_run = given.pop("print_config", False), given.pop("dry_run", False)
    if resume not in ("auto", "never") and not Path(resume).is_dir():
        raise UserError(f"--resume: must be auto, never or the folder of a checkpoint, got {resume!r}")
    settings = resolve(part, config, given)
    if print_config:
        print(to_yaml(settings), end="")
        raise SystemExit(0)
    return settings, Invocation(resume, allow_changed, dry_run, config)


def parse_overrides(part: str, overrides: Sequence[str]) -> dict:
    """['--optim.lr', '2e-4'] as {'optim': {'lr': 2e-4}}; raises UserError for unknown names and wrong types."""
    return _tyro(part, list(overrides), with_config=False)


def usage(part: str, config: Path | None = None) -> str:
    """The text of --help: usage, flags, and every setting with its value and its comment, one line each."""
    program = f"train_{part}.py"
    settings = resolve(part, config, {}) if config is not None and config.is_file() else PARTS[part]()
    source = f" and their values in {config}" if config else " and their defaults"
    lines = [_USAGE.format(program=program, pad=" " * len(program), part=part, source=source)]
    for path, _ in paths(PARTS[part]):
        value: Any = settings
        for step in path.split("."):
            value = getattr(value, step)
        shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if path != "output_dir":
            lines.append(f"  {f'--{path} {shown:.60}':<46} {comment_of(PARTS[part], path)}".rstrip())
    return "\n".join(lines)


# ---- tyro ----------------------------------------------------------------------------------------------------------


def _sparse(kind: type[Settings], **more: Any) -> Any:
    """The settings class as a TypedDict in which every key is optional: tyro then returns only what was given."""
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        inner = section(field.annotation)
        fields[name] = _sparse(inner) if inner else field.annotation
    return TypedDict(kind.__name__, {**fields, **more}, total=False)  # type: ignore[operator]


def _tyro(part: str, argv: list[str], with_config: bool) -> dict:
    import tyro  # 0.2 s that `import ldm` need not pay

    more: dict[str, Any] = {"config": Required[tyro.conf.Positional[Path]], **_FLAGS} if with_config else {}
    _check_names(part, argv, with_config)
    argv = _switched(part, argv)
    program, told = f"train_{part}.py", io.StringIO()
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            return tyro.cli(_sparse(PARTS[part], **more), args=argv, prog=program)
    except SystemExit:
        raise UserError(f"{_sentence(told.getvalue())}; see {program} --help") from None


def _switched(part: str, argv: list[str]) -> list[str]:
    """Switches as tyro has them: '--text.train false' and '--text.train=false' as '--text.no-train'."""
    switches = {path for path, field in paths(PARTS[part]) if field.annotation is bool}
    pending, result = list(argv), []
    while pending:
        word = pending.pop(0)
        path, equals, value = word.removeprefix("--").partition("=")
        path = path.replace("-", "_")
        if not word.startswith("--") or path not in switches:
            result.append(word)
            continue
        if not equals and pending and pending[0].lower() in ("true", "false"):
            value = pending.pop(0)
        owner, dot, name = path.rpartition(".")
        result.append(f"--{owner}{dot}no_{name}" if value.lower() == "false" else f"--{path}")
    return result


def _check_names(part: str, argv: list[str], with_config: bool) -> None:
    """A wrong name is told here, because tyro's own suggestions come in a box of many lines."""
    known = []
    for path, field in paths(PARTS[part]):
        *owners, name = path.split(".")
        known += [path, ".".join([*owners, f"no_{name}"])] if field.annotation is bool else [path]
    known += _FLAGS if with_config else []
    for argument in argv:
        if not argument.startswith("--"):
            continue
        path = argument[2:].partition("=")[0].replace("-", "_")
        if path in known:
            continue
        owner, _, key = path.rpartition(".")
        beside = [name for name in known if name.rpartition(".")[0] == owner]
        near = next((f"{owner}.{near}".lstrip(".") for near in [nearest(key, _keys(beside))] if near), None)
        near = near or next((name for name in known if name.rsplit(".", 1)[-1] == key), None) or nearest(path, known)
        hint = f"did you mean --{near}?" if near else f"see train_{part}.py --help"
        raise UserError(f"{argument.partition('=')[0]}: unknown option; {hint}")


def _keys(names: list[str]) -> list[str]:
    return [name.rsplit(".", 1)[-1] for name in names]


def _sentence(box: str) -> str:
    """The first paragraph of tyro's framed message, in one line."""
    lines = [line.strip(" │|╭╮╰╯") for line in box.splitlines()]
    rules = [i for i, line in enumerate(lines) if re.fullmatch(r"[─\-]{5,}", line)]
    start = rules[0] + 1 if rules and not lines[0].startswith("─") else 1
    body = []
    for line in lines[start:]:
        if not line or re.fullmatch(r"[─\-]{5,}", line):
            break
        body.append(line)
    text = " ".join(body).rstrip(".").replace("Error parsing ", "")
    if text.startswith("Missing from"):
        return "CONFIG.yaml is missing: give a file such as configs/glyphs.yaml first"
    if len(text) > 600:  # what was typed stands in the middle of it
        text = f"{text[:300]} ... {text[-300:]}"
    return text or "the command line was not understood"
