"""A Hub on 127.0.0.1 for the unmodified client, which fails where a test asks it to; and a client in its own process.

It keeps repositories as the Hub does, branches of commits of files, and speaks the calls that pushing and pulling take.
huggingface_hub reads its environment once, so `Client` runs it in a process that was started for this Hub.
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
LARGE = re.compile(r".*\.(safetensors|onnx|parquet|png)")  # kept as LFS objects
TOKEN = "hf_PLANTEDplantedPLANTEDplantedPLANTED"


@dataclass
class Fault:
    """From the `first` call that matches on, `times` calls go wrong.

    `call` is a pattern for "METHOD /path". `how` is a status, or one of: "reset" (before anything is done), "cut" (in
    the middle of the answer), "short" (half of the answer as if it were all), "altered" (one byte of it is another),
    "late", "applied 504" and "applied reset" (done, but the answer is lost), "down" (for good); or a function of the
    Hub, called before the call is served as usual.
    """

    call: str
    how: object
    first: int = 1
    times: int = 1
    seen: int = 0
    fired: int = 0

    def strikes(self, call: str) -> bool:
        if not re.fullmatch(self.call, call):
            return False
        self.seen += 1
        hit = self.first <= self.seen < self.first + self.times
        self.fired += hit
        return hit


@dataclass
class Repo:
    """Branches -> commits, newest last; a commit is its oid and the files at it."""

    branches: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        line = self.branches.setdefault(branch, [])
        told = f"{len(line)}{branch}{sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())}"
        line.append((hashlib.sha1(told.encode()).hexdigest(), files))
        return line[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((one for line in self.branches.values() for one in line if one[0] == revision), None)


class LoopbackHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}  # "models/user/name" -> its content
        self.objects: dict[str, bytes] = {}  # sha256 -> content of LFS
        self.faults: list[Fault] = []
        self.calls: list[str] = []
        self.tokens: set[str] = set()
        self.down = False
        self.lock = threading.RLock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo: str, revision: str = "main") -> dict[str, str]:
        """Path -> sha256 of the content; without what the Hub itself put there."""
        _, found = self.repos[repo].at(revision)
        return {name: hashlib.sha256(data).hexdigest() for name, data in found.items() if name != ".gitattributes"}

    def commits(self, repo: str, branch: str = "main") -> int:
        """How many were made after the one that comes with the repository."""
        return len(self.repos[repo].branches[branch]) - 1

    def create(self, name: str, files: dict[str, bytes] | None = None) -> None:
        self.repos[name] = Repo()
        self.repos[name].commit("main", {".gitattributes": b"", **(files or {})})

    def handle_error(self, request, client_address):
        pass  # a client that went away


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        self._serve()

    do_GET = do_HEAD = do_PUT = do_POST

    def _serve(self):
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            call = f"{self.command} {path}"
            self.server.calls.append(call)
            self.server.tokens.add(self.headers.get("Authorization", ""))
            fault = next((fault for fault in self.server.faults if fault.strikes(call)), None)
        how = fault.how if fault else None
        self.server.down |= how == "down"
        if self.server.down or how == "reset":
            return self._reset()
        if how == "late":
            time.sleep(0.5)
        if isinstance(how, int):
            return self._send(how, b'{"error": "injected"}')
        if callable(how):
            how(self.server)
        with self.server.lock:
            status, content, headers = self._answer(path, body)
        if how in ("applied 504", "applied reset"):
            return self._send(504, b"") if how == "applied 504" else self._reset()
        self._send(status, content, headers, how)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _reset(self):
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True

    def _send(self, status: int, content: bytes, headers: dict | None = None, how: object = None):
        if how == "short":
            content = content[: len(content) // 2]
        if how == "altered" and content:
            content = bytes([content[0] ^ 1]) + content[1:] if len(content) < 64 else content[:40] + b"~" + content[41:]
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if how == "cut" else content)
        if how == "cut":
            self.wfile.flush()
            time.sleep(0.05)
            self._reset()

    # ---- what a Hub does -----------------------------------------------------------------------------------------

    def _answer(self, path: str, body: bytes) -> tuple[int, bytes, dict]:
        if self.command in ("POST", "PUT") and "lfs-objects" not in path and not self.headers.get("Authorization"):
            return 401, b"{}", {}
        for pattern, serve in _ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                answer = serve(self, body, **found.groupdict())
                return answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode(), {})
        return 404, b"{}", {}

    def _create(self, body):
        told = json.loads(body)
        place = "/".join(filter(None, (told.get("organization"), told["name"])))
        name = f"{told.get('type') or 'model'}s/{place}"
        prefix = "" if name.startswith("models/") else name.split("/")[0] + "/"
        status = 409 if name in self.server.repos else 200
        if status == 200:
            self.server.create(name)
        return status, json.dumps({"url": f"{self.server.url}/{prefix}{place}"}).encode(), {}

    def _branch(self, body, repo, rev):
        branches = self.server.repos[repo].branches
        if rev in branches:
            return 409, b"{}", {}
        branches[rev] = branches["main"][:1]
        return {}

    def _info(self, body, repo, rev="main"):
        if repo not in self.server.repos:
            return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
        found = self.server.repos[repo].at(rev or "main")
        if found is None:
            return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
        listed = [{"rfilename": name} for name in found[1]]
        return {"id": repo.split("/", 1)[1], "sha": found[0], "siblings": listed, "private": False, "tags": []}

    def _tree(self, body, repo, rev, below=""):
        folder, files = (below or "").strip("/"), self._at(repo, rev)[1]
        within = {name: data for name, data in files.items() if not folder or name.startswith(f"{folder}/")}
        listed = [{"type": "file", "path": name, **_entry(name, data)} for name, data in within.items()]
        if "recursive=true" in self.path.lower():
            return listed
        depth = len(folder) + 1 if folder else 0
        below_it = {name[: name.index("/", depth)] for name in within if "/" in name[depth:]}
        folders = [{"type": "directory", "path": name, "oid": git_oid(name.encode()), "size": 0} for name in below_it]
        return [one for one in listed if "/" not in one["path"][depth:]] + folders

    def _at(self, repo, rev):
        return self.server.repos[repo].at(rev)

    def _preupload(self, body, repo, rev):
        there = self._at(repo, rev)[1]
        modes = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if LARGE.fullmatch(each["path"]) else "regular",
                "shouldIgnore": False,
                "oid": _oid(each["path"], there[each["path"]]) if each["path"] in there else None,
            }
            for each in json.loads(body)["files"]
        ]
        return {"files": modes}

    def _batch(self, body, repo):
        wanted = json.loads(body)["objects"]
        for each in wanted:
            if each["oid"] not in self.server.objects:
                place = f"{self.server.url}/lfs-objects/{each['oid']}"
                each["actions"] = {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}
        return {"transfer": "basic", "objects": wanted}

    def _put(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, b"{}", {}
        self.server.objects[oid] = body
        return {}

    def _verify(self, body, oid):
        return {} if oid in self.server.objects else (404, b"{}", {})

    def _commit(self, body, repo, rev):
        lines = [json.loads(line) for line in body.splitlines()]
        head, files = self._at(repo, rev)
        files, parent = dict(files), lines[0]["value"].get("parentCommit")
        if parent not in (None, head):
            return 412, b'{"error": "A commit has happened since. Please refresh and try again."}', {}
        for key, value in ((line["key"], line["value"]) for line in lines[1:]):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = self.server.repos[repo].commit(rev, files)
        return {"commitUrl": f"{self.server.url}/{repo}/commit/{oid}", "commitOid": oid, "success": True}

    def _resolve(self, body, repo, rev, path):
        repo = repo if repo.startswith("datasets/") else f"models/{repo}"
        found = self._at(repo, rev) if repo in self.server.repos else None
        if found is None or path not in found[1]:
            return 404, b"", {"X-Error-Code": "EntryNotFound" if found else "RepoNotFound"}
        data = found[1][path]
        headers = {"ETag": f'"{_oid(path, data)}"', "X-Repo-Commit": found[0], "Accept-Ranges": "bytes"}
        if LARGE.fullmatch(path):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return 200, data, headers
        start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return 206, data[start : end + 1], headers


def _oid(path: str, data: bytes) -> str:
    """What the Hub calls a content: the sha256 of what LFS keeps, else git's."""
    return hashlib.sha256(data).hexdigest() if LARGE.fullmatch(path) else git_oid(data)


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict:
    if not LARGE.fullmatch(path):
        return {"oid": git_oid(data), "size": len(data)}
    large = {"oid": _oid(path, data), "size": len(data), "pointerSize": 134}
    return {"oid": git_oid(large["oid"].encode()), "size": len(data), "lfs": large}


_REPO, _REV = r"/api/(?P<repo>(?:models|datasets|spaces)/[^/]+/[^/]+)", r"(?P<rev>.+)"
_ROUTES = [
    (r"POST /api/repos/create", _Handler._create),
    (r"POST /api/validate-yaml", lambda handler, body: {"errors": [], "warnings": []}),
    (rf"POST {_REPO}/preupload/{_REV}", _Handler._preupload),
    (rf"POST {_REPO}/commit/{_REV}", _Handler._commit),
    (rf"POST {_REPO}/branch/{_REV}", _Handler._branch),
    (rf"GET {_REPO}/revision/{_REV}", _Handler._info),
    (rf"GET {_REPO}/tree/(?P<rev>[^/]+)(?P<below>/.*)?", _Handler._tree),
    (rf"GET {_REPO}", _Handler._info),
    (r"POST /(?P<repo>.+)\.git/info/lfs/objects/batch", _Handler._batch),
    (r"PUT /lfs-objects/(?P<oid>\w+)", _Handler._put),
    (r"POST /lfs-objects/(?P<oid>\w+)/verify", _Handler._verify),
    (r"(?:GET|HEAD) /(?P<repo>.+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", _Handler._resolve),
]


# ---- the client ------------------------------------------------------------------------------------------------------


class Client:
    """A process that runs `ldm` commands against a Hub, one after another, with a token of its own planted in it."""

    def __init__(self, hub: LoopbackHub, home: Path, **more: str):
        self.hub, self.home = hub, home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        told = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**kept, **told, "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": path, **more}
        self.process: subprocess.Popen | None = None
        self.said = ""  # by all commands together

    def run(self, *words: object) -> SimpleNamespace:
        """Run `ldm WORDS`, or one of `ACTIONS` below: its exit code, and what it wrote to both streams."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, __file__]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.process = subprocess.Popen(command, env=self.environment, text=True, **pipes)
        self.process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()  # "" from a process that was killed
        code, text = json.loads(answer) if answer else (self.process.wait(), "")
        self.said += text
        return SimpleNamespace(code=code, text=text)

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


def _locate(name: str) -> int:
    from ldm.pipelines.model_folder import resolve_model

    print(resolve_model(name).paths["unet"].parent)
    return 0


def _draw(name: str, out: str, *stock_options: str) -> int:
    """The same picture by stock diffusers and by us, (2, H, W, C) in [0, 1], into an .npy file."""
    import numpy as np
    import torch
    from diffusers import DiffusionPipeline

    from ldm.pipelines.loading import load_pipeline

    own = load_pipeline(name)
    stock = DiffusionPipeline.from_pretrained(name, **dict(option.split("=") for option in stock_options))
    stock.set_progress_bar_config(disable=True)
    latents = torch.randn(1, *own.latent_shape, generator=torch.Generator().manual_seed(0))
    same = {"latents": latents, "num_inference_steps": 5, "guidance_scale": 2.0, "output_type": "np"}
    np.save(out, np.concatenate([np.asarray(each("water", **same).images) for each in (stock, own)]))
    return 0


ACTIONS = {"locate": _locate, "draw": _draw}


def _work() -> None:
    """Commands from standard input, answers to standard output. Only patience is cut short."""
    import io
    from contextlib import redirect_stderr, redirect_stdout

    from ldm.cli.main import main
    from ldm.utils.runtime import run_main

    answers, real_sleep = os.fdopen(os.dup(1), "w"), time.sleep
    time.sleep = lambda seconds: real_sleep(min(seconds, 0.01))
    for line in sys.stdin:
        words, text = json.loads(line), io.StringIO()
        with redirect_stdout(text), redirect_stderr(text):
            try:
                main(words) if words[0] not in ACTIONS else run_main(partial(ACTIONS[words[0]], *words[1:]))
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                import traceback

                traceback.print_exc()
                code = "crash"
        answers.write(json.dumps([code, text.getvalue()]) + "\n")
        answers.flush()


if __name__ == "__main__":
    _work()
