"""The settings of a settings class by their dotted paths, and the name that somebody meant."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic.fields import FieldInfo

from ldm.config.settings import Settings


def section(annotation: Any) -> type[Settings] | None:
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
