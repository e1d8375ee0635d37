"""Large files that were read are not read again at every start: what the system says of them is remembered.

A file with the number, size and times that it had when all of it was read has the same content. Files that were changed
within the last seconds are not remembered: a file system's clock ticks slowly, and one more change might not show.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ldm.utils.atomic_files import atomic_write

SETTLED_SECONDS = 2.0


def verify_once(files: Sequence[Path], stamp: Path, verify: Callable[[], str | None]) -> str | None:
    """What is wrong with files, None if nothing: by `verify`, or by the file `stamp` if nothing changed since."""
    before = _state(files)
    with suppress(OSError, ValueError):
        if before and json.loads(stamp.read_text(encoding="utf-8")) == before:
            return None
    fault = verify()
    settled = time.time_ns() - 1e9 * SETTLED_SECONDS
    if fault is None and before == _state(files) and all(max(times[:2]) < settled for _, *times in before.values()):
        with suppress(OSError):  # of a cache that cannot be written
            atomic_write(stamp, json.dumps(before).encode())
    return fault


def digest_once(files: Sequence[Path], stamp: Path, about: str, compute: Callable[[], str]) -> str:
    """A digest of files, any number of them: by `compute`, or by the file `stamp` if nothing changed since.

    Args:
        about: what the digest depends on besides the files.
    """
    before, newest = _summary(files, about)
    with suppress(OSError, ValueError, LookupError, TypeError):
        known = json.loads(stamp.read_text(encoding="utf-8"))
        if before and known["files"] == before and known["check"] == _check(before, known["digest"]):
            return str(known["digest"])
    digest = compute()
    settled = time.time_ns() - 1e9 * SETTLED_SECONDS
    if before and newest < settled and before == _summary(files, about)[0]:
        found = {"files": before, "digest": digest, "check": _check(before, digest)}
        with suppress(OSError):
            stamp.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(stamp, json.dumps(found).encode())
    return digest


def _check(files: str, digest: str) -> str:
    """Of what is remembered, so that a damaged stamp is none."""
    return hashlib.sha256(f"{files} {digest}".encode()).hexdigest()


def _summary(files: Sequence[Path], about: str) -> tuple[str, int]:
    """Digest of what the system says of files, and their newest time; ("", 0) if one is missing, or there are none."""
    digest, newest = hashlib.sha256(about.encode("utf-8", "surrogatepass")), 0
    try:
        for path in files:
            size, changed, touched, number = _facts(path)
            digest.update(f"\n{size} {changed} {touched} {number}".encode())
            newest = max(newest, changed, touched)
    except OSError:
        return "", 0
    return (digest.hexdigest(), newest) if files else ("", 0)


def _facts(path: Path) -> list[int]:
    """Size, times of the last change of content and of anything, and the file's number. Raises: OSError."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _state(files: Sequence[Path]) -> dict[str, list[int]]:
    """Name -> `_facts`; {} if a file is missing."""
    try:
        return {path.name: _facts(path) for path in files}
    except OSError:
        return {}
