"""Checks of every request before gradio sees it (ASGI): small, and where only this machine is served, from its page.

A page elsewhere can make a visitor's browser send requests to 127.0.0.1, by their address or by a name that it makes
point there; such a request shows it in its Origin or Host header.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from urllib.parse import urlsplit

from ldm.apps.demo.limits import MAX_BYTES, MAX_JSON

SLACK = 4096  # bytes of an upload around the image
REMOTE = ("http:", "https:", "ftp:", "//")
# What the page and clients of it need. Gradio has more, some of which go around the queue or break on strange input.
READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(static|assets)/.+"
    r"|/gradio_api/(info|app_id|theme\.css|startup-events|upload_progress|queue/data)/?"
    r"|/gradio_api/(heartbeat/\w+|call/\w+/\w+|file=.+)/?"
)
WRITTEN = re.compile(r"/gradio_api/(upload|cancel|queue/join|run/predict|call/(?P<name>\w+))/?")


class Guard:
    """ASGI middleware.

    Args:
        app: the ASGI application behind it.
        hosts: the names that requests may be addressed to, such as ("localhost", "127.0.0.1"); empty = any, and from
            any page.
        queued: number -> name of what goes through the queue, "" for what only the page itself calls.
        quick: numbers of what does not, such as Stop.
    """

    def __init__(
        self, app, hosts: Sequence[str] = (), queued: Mapping[int, str] | None = None, quick: Collection[int] = ()
    ):
        self.app, self.hosts, self.queued, self.quick = app, tuple(hosts), queued or {}, quick

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused is None and scope["method"] == "POST" and not _is_upload(scope):
            body = await _read(receive)
            refused = self._misunderstood(scope["path"], body)
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
        known = {"GET": READ, "HEAD": READ, "POST": WRITTEN}.get(scope["method"])
        found = known.fullmatch(scope["path"]) if known else None
        if found is None or not {"", *self.queued.values()} >= {found.groupdict().get("name") or ""}:
            return 404, "there is no such thing here"
        if known is READ:
            return None
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdecimal() and len(length) < 16):
            return 411, "say how long it is (Content-Length)"
        most = MAX_BYTES + SLACK if _is_upload(scope) else MAX_JSON
        return (413, f"{most:,} bytes are allowed here") if int(length) > most else None

    def _misunderstood(self, path: str, body: bytes) -> tuple[int, str] | None:
        """What is wrong with the JSON of a request, None if nothing is."""
        found: list[str] = []

        def look(pairs):
            found.extend(value for name, value in pairs if name == "path" and isinstance(value, str))
            return dict(pairs)

        try:
            content = json.loads(body, object_pairs_hook=look, parse_constant=_no_number)
        except (ValueError, RecursionError):
            return 400, "this is no JSON"
        if any(name.strip().lower().startswith(REMOTE) for name in found):  # gradio would fetch it
            return 400, "addresses elsewhere are not fetched"
        if not isinstance(content, dict) or not isinstance(content.get("data", []), list):
            return 400, "an object with a list of data is wanted"
        known = self.queued if "queue/join" in path else self.quick if "run/predict" in path else None
        number = content.get("fn_index")
        if known is not None and (not isinstance(number, int) or number not in known):
            return 404, "there is no such function"
        return None


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


def _no_number(name: str):
    raise ValueError(f"{name} is no number of JSON")
