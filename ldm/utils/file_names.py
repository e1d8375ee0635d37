"""Names that a file can have on every system."""

import re

DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE)
FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')


def windows_objection(name: str) -> str | None:
    """Why Windows takes no file or folder of this name; None if it does."""
    if DEVICES.fullmatch(name.strip()):
        return "is the name of a device"
    if bad := FORBIDDEN.search(name):
        return f"has {bad[0]!r}"
    if name != name.rstrip(" ."):
        return "ends in a space or a full stop"
    return None
