"""What every request has to pass before gradio sees it (ASGI): small, and where only this machine is served, ours.

A page elsewhere can make a visitor's browser send requests to 127.0.0.1, by their address or by a name that it makes
point there; such a request tells of it by its Origin or by its Host.
"""

import json
from collections.abc import Sequence
from urllib.parse import urlsplit

from ldm.app.limits import MOST_BYTES, MOST_JSON

SLACK = 4096  # bytes of an upload around the picture
REMOTE = ("http:", "https:", "ftp:", "//")


class Guard:
    """ASGI middleware.

    Args:
        app: the ASGI application behind it.
        hosts: the names that requests may be addressed to, such as ("localhost", "127.0.0.1"); empty = any, and from
            any page.
    """

    def __init__(self, app, hosts: Sequence[str] = ()):
        self.app, self.hosts = app, tuple(hosts)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused is None and scope["method"] == "POST" and not _is_upload(scope):
            body = await _read(receive)
            refused = (400, "a file is named by an address elsewhere") if _names_remote_file(body) else None
            receive = _replayed(body, receive)
        if refused is None:
            return await self.app(scope, receive, send)
        code, why = refused
        content = json.dumps({"detail": why}).encode()
        kind = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": code, "headers": [*kind, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": content})

    def _refused(self, scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """The status and the reason, None if the request may pass."""
        if self.hosts:
            if _name(headers.get("host", "")) not in self.hosts:
                return 403, "this name is not served here"
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != headers.get("host"):
                return 403, "requests from other pages are not answered"
        if any(f"={scheme}" in scope["path"] for scheme in REMOTE):
            return 400, "addresses elsewhere are not fetched"
        if scope["method"] != "POST":
            return None
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdecimal() and len(length) < 16):
            return 411, "say how long it is (Content-Length)"
        most = MOST_BYTES + SLACK if _is_upload(scope) else MOST_JSON
        return (413, f"{most:,} bytes are allowed here") if int(length) > most else None


def _name(host: str) -> str:
    """127.0.0.1:7860 -> 127.0.0.1, [::1]:7860 -> ::1."""
    return (urlsplit(f"//{host}").hostname or "") if host.count("@") == 0 else ""


def _is_upload(scope) -> bool:
    return scope["path"].rstrip("/").endswith("/upload")


async def _read(receive) -> bytes:
    """The whole body: the server passes on no more than Content-Length said."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _replayed(body: bytes, receive):
    """A `receive` that gives `body` first."""
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def again():
        return rest.pop() if rest else await receive()

    return again


def _names_remote_file(body: bytes) -> bool:
    """Whether the JSON has a "path" that is an address: gradio would fetch it, if only from public places."""
    found: list[str] = []

    def look(pairs):
        found.extend(value for name, value in pairs if name == "path" and isinstance(value, str))

    try:
        json.loads(body or b"null", object_pairs_hook=look)
    except (ValueError, RecursionError):
        return False  # gradio says what is wrong with it
    return any(path.strip().lower().startswith(REMOTE) for path in found)
