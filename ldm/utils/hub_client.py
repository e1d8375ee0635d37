"""The Hub, with_retries: what goes up is one commit or none, and what comes down is what the Hub lists, or is refused.

Pushing looks at the branch, commits what is missing on top of exactly that, and looks again. So an answer that was lost
is told from a commit that was, nothing is committed twice, and nobody else's commit is covered.

The token is huggingface_hub's own (environment or login): it is never read, taken or shown here.
"""

import fnmatch
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ldm.utils.errors import UserError, redacted

log = logging.getLogger(__name__)
WAITS = (1, 2, 4, 8)  # seconds between attempts
AGAIN = (408, 429, 500, 502, 503, 504)  # statuses that pass


def reason(error: BaseException) -> str:
    """What an error of the Hub's client says, in one line that can be shown to anyone."""
    lines = str(_root(error)).strip().splitlines() or [type(error).__name__]
    return redacted(lines[0].strip())


def _root(error: BaseException) -> BaseException:
    """What was first: the client tells it as a fault of one file, or as an earlier download that it did not find."""
    while isinstance(error, RuntimeError | FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def with_retries(call: Callable, *args, **options) -> Any:
    """What `call` returns; it is called again as long as its fault is one that passes, and WAITS last."""
    for wait in (*WAITS, None):
        try:
            return call(*args, **options)
        except Exception as error:  # the client's have no common base
            if wait is None or not passes(error):
                raise
            log.warning("the Hub: %s; again in %d s", reason(error), wait)
        time.sleep(wait)


def passes(error: BaseException) -> bool:
    """Whether a fault is of the line or the server, so that another attempt may go well."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    error = _root(error)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in AGAIN
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, json.JSONDecodeError):  # half an answer
        return True
    odd_size = type(error) is OSError and error.errno is None  # the client's own check of a download
    return odd_size or isinstance(error, HTTPError | ConnectionError | TimeoutError)


# ---- up --------------------------------------------------------------------------------------------------------------


def push(
    folder: Path,
    files: Mapping[str, Path],
    repo_id: str,
    message: str,
    kind: str = "model",
    private: bool = False,
    revision: str | None = None,
    replaces: Sequence[str] = (),
    mark: str = "",
    place: str = "",
) -> str:
    """Make a repository if needed, and its branch hold the files by at most one commit.

    Args:
        folder: what they are of, for messages.
        files: path in the repository -> file.
        kind: "model", "dataset" or "space".
        revision: the branch; None = main.
        replaces: patterns of the files that only count together. Those of an earlier upload that are no more go with
            the same commit; other files are left alone.
        mark: the file by which an earlier upload of ours is known. Where it is missing nothing is removed: refused.
        place: what stands for the repository's name in README.md, where the name is put.

    Returns: a line that says what happened, with the commit's address.
    Raises: UserError: what the Hub says, and how things stand now.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

    with _addressed(files, place, repo_id) as files:
        api, upload = HfApi(), _Upload(files, repo_id, kind, revision or "main", replaces, mark)
        try:
            sdk = {"space_sdk": "gradio"} if kind == "space" else {}
            with_retries(api.create_repo, repo_id, repo_type=kind, private=private, exist_ok=True, **sdk)
            if revision is not None:
                with_retries(api.create_branch, repo_id, branch=revision, repo_type=kind, exist_ok=True)
            return upload.run(api, message)
        except LocalTokenNotFoundError:
            raise UserError("no Hub token was found: run `hf auth login`, or set HF_TOKEN") from None
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            state = f"nothing was changed there, and {folder} is whole: push again later"
            if upload.base and not upload.is_unchanged(api):
                state = "the Hub may or may not have taken the commit: push again to find out, it is never made twice"
            raise UserError(f"{repo_id} could not be uploaded: {reason(error)}; {state}") from None


@contextmanager
def _addressed(files: Mapping[str, Path], place: str, repo_id: str) -> Iterator[dict[str, Path]]:
    """The files, with a README.md that names the repository."""
    with tempfile.TemporaryDirectory() as scratch:
        named = dict(files)
        if place and "README.md" in files:
            named["README.md"] = Path(scratch) / "README.md"
            text = files["README.md"].read_text(encoding="utf-8").replace(place, repo_id)
            named["README.md"].write_text(text, encoding="utf-8")
        yield named


def files_in(folder: Path) -> dict[str, Path]:
    """All files of a folder, path below it -> file."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def print_plan(files: Mapping[str, Path], repo_id: str) -> None:
    """What a push would send."""
    sizes = {name: file.stat().st_size for name, file in files.items()}
    for name, size in sizes.items():
        print(f"{size:>12,}  {name}")
    print(f"{sum(sizes.values()):>12,}  in {len(sizes)} files would go to {repo_id} as one commit")


class _Upload:
    """One push: see `push`."""

    def __init__(self, files: Mapping[str, Path], repo_id: str, kind: str, branch: str, replaces, mark):
        self.repo_id, self.kind, self.branch, self.replaces, self.mark = repo_id, kind, branch, replaces, mark
        self.files = files
        self.hashes = {name: (_sha256(file), git_oid(file)) for name, file in self.files.items()}
        self.base: str | None = None  # the commit that ours goes on top of, once it may have been sent

    def run(self, api, message: str) -> str:
        from huggingface_hub.errors import HfHubHTTPError

        made, waits = None, list(WAITS)
        while True:
            head, there = with_retries(self._listed, api)
            todo = self._operations(there)
            if not todo:
                return self._line(api, head)
            if self.base not in (None, head):
                why = "it holds other content now than was sent" if head == made else "somebody else committed to it"
                raise UserError(f"{self.repo_id}: {why} during the push; look at it, then push again")
            self.base = head
            target = {"repo_type": self.kind, "revision": self.branch, "parent_commit": head}
            try:
                made = api.create_commit(self.repo_id, todo, commit_message=message, **target).oid
            except Exception as error:
                moved = isinstance(error, HfHubHTTPError) and error.response.status_code == 412
                if not waits or not (moved or passes(error)):
                    raise
                log.warning("%s: %s; again in %d s", self.repo_id, reason(error), waits[0])
                time.sleep(waits.pop(0))

    def is_unchanged(self, api) -> bool:
        """Whether the branch certainly is as it was."""
        try:
            return self._listed(api)[0] == self.base
        except Exception:  # then nobody knows
            return False

    def _listed(self, api) -> tuple[str, dict[str, Any]]:
        """The branch's newest commit and its files by path."""
        head = api.repo_info(self.repo_id, repo_type=self.kind, revision=self.branch).sha
        tree = api.list_repo_tree(self.repo_id, repo_type=self.kind, revision=head, recursive=True)
        return head, {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}

    def _operations(self, there: dict[str, Any]) -> list:
        """What makes the branch hold our files."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        stale = [name for name in there if name not in self.files and self._replaced(name)]
        if stale and self.mark not in there:
            raise UserError(
                f"{self.repo_id} holds something else of the same kind ({stale[0]}), which would mix with this: "
                "push to a new repository or branch"
            )
        new = [name for name in self.files if name not in there or not self._same(name, there[name])]
        adds = [CommitOperationAdd(name, str(self.files[name])) for name in new]
        return [*adds, *(CommitOperationDelete(name) for name in stale)]

    def _replaced(self, name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in self.replaces)

    def _same(self, name: str, entry) -> bool:
        large, small = self.hashes[name]
        return entry.lfs.sha256 == large if entry.lfs else entry.blob_id == small

    def _line(self, api, head: str) -> str:
        prefix = "" if self.kind == "model" else f"{self.kind}s/"
        url = f"{redacted(api.endpoint)}/{prefix}{self.repo_id}/commit/{head}"
        return url if self.base else f"nothing to change: {url} holds the same {len(self.files)} files"


# ---- down ------------------------------------------------------------------------------------------------------------


def pull(repo_id: str, revision: str | None, patterns: Sequence[str], leaving: Sequence[str] = ()) -> Path:
    """The snapshot of a repository with the files that match, `leaving` others: a folder whose name is the commit.

    Every file is compared with the hash that the Hub tells of it, also one that was downloaded before. One that differs
    is removed and fetched again. Without a Hub an earlier download has to do.

    Raises: UserError with the Hub's reason.
    """
    from huggingface_hub.errors import HTTPError

    faults = (HTTPError, OSError, ValueError, RuntimeError)
    try:
        return with_retries(_snapshot, repo_id, revision, patterns, leaving)
    except faults as error:
        if passes(error):
            with suppress(*faults):
                kept = _snapshot(repo_id, revision, patterns, leaving, local_files_only=True)
                log.warning("the Hub does not answer, so the download of before is taken: %s", kept.name)
                return kept
        name = repo_id + (f"@{revision}" if revision else "")
        raise UserError(f"there is no folder {name}, and the Hub did not give it as a model: {reason(error)}") from None


def _snapshot(repo_id: str, revision: str | None, patterns: Sequence[str], leaving: Sequence[str], **options) -> Path:
    from huggingface_hub import snapshot_download

    wanted = {"allow_patterns": list(patterns), "ignore_patterns": list(leaving)}
    folder = Path(snapshot_download(repo_id, revision=revision, **wanted, **options))
    wrong = [file for file in sorted(folder.rglob("*")) if file.is_symlink() and not _is_as_named(file.resolve())]
    for file in wrong:
        file.resolve().unlink(missing_ok=True)
        file.unlink()
    if wrong:
        raise ConnectionError(f"{wrong[0].relative_to(folder)} is not what the Hub lists, and was removed")
    return folder


def _is_as_named(blob: Path) -> bool:
    """Whether a file of the client's cache has the hash that is its name there: sha256 of a large one, else git's."""
    if not blob.is_file():
        return False
    digest = {64: _sha256, 40: git_oid}.get(len(blob.name))
    return digest is None or digest(blob) == blob.name


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def git_oid(file: Path) -> str:
    """Git's name of the file's content."""
    total = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with file.open("rb") as stream:
        while part := stream.read(2**20):
            total.update(part)
    return total.hexdigest()
