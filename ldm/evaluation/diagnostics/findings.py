"""What a check finds, and how it is printed: one line, with advice below it where something is wrong."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The result of a check, whose name `guarded` fills in."""

    name: str
    status: Literal["ok", "warn", "fail", "skip"]  # skip: it could not be checked, and the text says why
    text: str
    advice: str = ""  # what to do about it


def ok(text: str) -> Finding:
    return Finding("", "ok", text)


def warn(text: str, advice: str) -> Finding:
    return Finding("", "warn", text, advice)


def fail(text: str, advice: str) -> Finding:
    return Finding("", "fail", text, advice)


def skip(text: str) -> Finding:
    return Finding("", "skip", text)


def format_line(finding: Finding) -> str:
    advice = f"\n{'':20}-> {finding.advice}" if finding.advice else ""
    return f"{finding.status:<5} {finding.name:<13} {finding.text}{advice}"


def guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding of a check; one that raises is itself a failure, so that the others still run."""
    try:
        return replace(check(), name=name)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Finding(name, "fail", f"the check itself raised {what}", "the lines above may say why")


def verdict(findings: list[Finding]) -> str:
    """One line: the first failure, which is the cause (later ones may only be its consequences), or none."""
    failures = [finding for finding in findings if finding.status == "fail"]
    warnings = sum(finding.status == "warn" for finding in findings)
    if not failures:
        return f"no failure found; {warnings} warning(s)" if warnings else "no failure found"
    more = f" ({len(failures) - 1} later check(s) fail too, perhaps because of it)" if len(failures) > 1 else ""
    return f"cause: {failures[0].name}: {failures[0].text}{more}"
