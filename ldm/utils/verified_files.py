"""Large files that were verified are not read again at every start: what the system says of them is remembered.

A file with the size and times that it had when all of it was read has the same content. Files that were changed within
the last seconds are not remembered: a file system's clock ticks slowly, and one more change might not show.
"""

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
    if fault is None and before == _state(files) and all(max(times) < settled for _, *times in before.values()):
        with suppress(OSError):  # of a cache that cannot be written
            atomic_write(stamp, json.dumps(before).encode())
    return fault


def _state(files: Sequence[Path]) -> dict[str, list[int]]:
    """Name -> size, and times of the last change of content and of anything; {} if a file is missing."""
    try:
        found = {path.name: os.stat(path) for path in files}
    except OSError:
        return {}
    return {name: [one.st_size, one.st_mtime_ns, one.st_ctime_ns] for name, one in found.items()}
