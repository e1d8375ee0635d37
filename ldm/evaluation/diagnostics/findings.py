"""What a check found, and how it is told: one line, with advice below it where something is wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    name: str
    status: Literal["ok", "warn", "fail", "skip"]  # skip: it could not be looked at, and the text says why
    text: str  # what was found
    advice: str = ""  # what to do about it


def as_line(finding: Finding) -> str:
    advice = f"\n{'':20}-> {finding.advice}" if finding.advice else ""
    return f"{finding.status:<5} {finding.name:<13} {finding.text}{advice}"


def guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding of a check; one that breaks is itself a failing finding, so that the others still speak."""
    try:
        return check()
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Finding(name, "fail", f"the check itself broke: {what}", "the lines above may say why")


def verdict(findings: list[Finding]) -> str:
    """One line: the first fault, which is the cause (what fails after it may only be its consequence), or none."""
    faults = [finding for finding in findings if finding.status == "fail"]
    doubts = sum(finding.status == "warn" for finding in findings)
    if not faults:
        return f"no fault found; {doubts} warning(s)" if doubts else "no fault found"
    more = f" ({len(faults) - 1} later check(s) fail too, perhaps because of it)" if len(faults) > 1 else ""
    return f"cause: {faults[0].name}: {faults[0].text}{more}"
