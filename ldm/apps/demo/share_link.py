"""The settings of images as the query of the page's address, and back; whatever such an address says is checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from ldm.apps.demo import limits
from ldm.utils.errors import UserError

NAMES = ("prompt", "negative", "seed", "number", "steps", "guidance", "sampler", "height", "width")


@dataclass(frozen=True)
class Settings:
    """What the page's fields are set to; None = leave a field as it is."""

    prompt: str | None = None
    negative: str | None = None
    seed: int | None = None
    number: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    height: int | None = None
    width: int | None = None


def query(job: Mapping[str, Any], number: int) -> str:
    """'prompt=water&seed=5&number=4&...': of a job, what a visitor chose, for the address after the '?'."""
    chosen = {**{name: job.get(name) for name in NAMES}, "number": number}
    said = {name: value for name, value in chosen.items() if value not in (None, "")}
    return urlencode({"prompt": "", **said})  # an empty one too: the page opens with an example in its field


def settings_of(parameters: Mapping[str, str], samplers: list[str]) -> Settings:
    """The settings in an address; what is missing is None, and what this page does not know is not read.

    Raises: UserError: one that is not allowed.
    """
    given = {name: parameters[name] for name in NAMES if name in parameters}
    texts = [name for name in ("prompt", "negative") if name in given]
    found: dict[str, Any] = {name: limits.text(name, given[name]) or "" for name in texts}
    for name in ("seed", "number", "steps", "height", "width"):
        if name in given:
            found[name] = limits.whole(name, _number(given[name]))
    if "guidance" in given:
        found["guidance"] = limits.real("guidance", _number(given["guidance"]))
    if "sampler" in given:
        found["sampler"] = limits.choice("sampler", given["sampler"], samplers)
    return Settings(**found)


def _number(text: str) -> float | str:
    """A number, or the text that is none, for `limits` to refuse."""
    try:
        return float(text)
    except ValueError:
        return text


def settings_or_reason(parameters: Mapping[str, str], samplers: list[str]) -> tuple[Settings, str]:
    """As `settings_of`; for an address that is not allowed no settings, and why."""
    try:
        return settings_of(parameters, samplers), ""
    except UserError as error:
        return Settings(), f"This link cannot be used: {error}"
