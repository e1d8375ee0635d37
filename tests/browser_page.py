"""The browser page in tests: written by `ldm web`, served on a loopback port, opened in Chromium."""

import contextlib
import functools
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from ldm.apps.web import runtime
from ldm.cli.main import build_parser
from ldm.cli.web import run

ROOT = Path(__file__).resolve().parents[1]
MODEL = "glyphs-fast"


def web(*words) -> int:
    """`ldm web` with these words."""
    args = ["web", *map(str, words)]
    return run(build_parser(args).parse_args(args))


def runtime_at_hand() -> Path | None:
    """A folder of onnxruntime-web in the checkout, or None."""
    return runtime._within(ROOT / runtime.CACHE) or runtime._within(ROOT / "node_modules")


def ask(folder: Path, code: str, told):
    """What node prints as JSON for the code, which may import the modules of a page in `folder` and knows `told`."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("no node is installed")
    (folder / "package.json").write_text('{"type": "module"}')
    head = 'import fs from "node:fs"; const told = JSON.parse(fs.readFileSync(0, "utf8"));\n'
    (folder / "ask.js").write_text(head + code)
    done = subprocess.run([program, "ask.js"], cwd=folder, input=json.dumps(told), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(folder: Path):
    """The address of a server for the files in a folder; it ends with the context."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def opened(browser, address: str, query: str = "", **options):
    """A page, and the list of what it complains of and asks elsewhere."""
    page, wrong = browser.new_page(**options), []
    page.set_default_timeout(300_000)  # a machine under load

    def heard(message) -> None:
        if message.type in ("error", "warning"):
            wrong.append(f"{message.text} {message.location}")

    def asked(request) -> None:
        if not request.url.startswith((address, "blob:", "data:")):
            wrong.append(request.url)

    page.on("console", heard)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", asked)
    page.goto(address + query)
    return page, wrong
