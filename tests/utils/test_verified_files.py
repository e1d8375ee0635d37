"""What was verified is read again only after a change, and every change counts."""

import os

import pytest

from ldm.utils import verified_files
from ldm.utils.verified_files import digest_once, verify_once


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files that nobody changes any more; `read` counts how often they were read."""
    monkeypatch.setattr(verified_files, "SETTLED_SECONDS", 0.0)
    names = [tmp_path / "a", tmp_path / "b"]
    for name in names:
        name.write_bytes(b"content")
    return names


def reads(files, fault=None) -> int:
    count = []
    assert verify_once(files, files[0].with_name("stamp"), lambda: count.append(1) or fault) == (
        fault if count else None
    )
    return len(count)


def test_files_are_read_once(files):
    assert [reads(files) for _ in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("harm", ["content", "size", "times", "missing", "stamp"])
def test_what_changed_is_read_again(files, harm):
    reads(files)
    if harm == "content":  # with the times that it had
        before = os.stat(files[1])
        files[1].write_bytes(b"CONTENT")
        os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    elif harm == "size":
        files[1].write_bytes(b"longer content")
    elif harm == "times":
        os.utime(files[0], (1, 1))
    elif harm == "missing":
        files[0].unlink()
    else:
        files[0].with_name("stamp").write_text("{")
    assert reads(files) == 1


def test_a_fault_is_not_remembered(files):
    assert reads(files, "damaged") == 1 and reads(files, "damaged") == 1


def test_what_has_just_changed_is_not_trusted(files, monkeypatch):
    monkeypatch.setattr(verified_files, "SETTLED_SECONDS", 60.0)
    assert reads(files) == 1 and reads(files) == 1


def test_a_cache_that_cannot_be_written_is_read(files):
    files[0].with_name("stamp").mkdir()
    assert reads(files) == 1 and reads(files) == 1


def digest(files, value="new", about="") -> str:
    """What is known, or else `value`."""
    return digest_once(files, files[0].with_name("digest"), about, lambda: value)


def test_a_digest_is_computed_once(files):
    assert [digest(files, value) for value in ("first", "second")] == ["first", "first"]


@pytest.mark.parametrize("harm", ["content", "replaced", "missing", "another order", "another file", "about", "stamp"])
def test_a_digest_is_computed_again_after_a_change(files, harm):
    digest(files, "first")
    before, about = os.stat(files[1]), ""
    if harm == "content":
        files[1].write_bytes(b"CONTENT")
        os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    elif harm == "replaced":
        copy = files[1].with_name("copy")
        copy.write_bytes(b"CONTENT")
        os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
        copy.replace(files[1])
    elif harm == "missing":
        files[0].unlink()
    elif harm == "another order":
        files.reverse()
    elif harm == "another file":
        files.append(files[0])
    elif harm == "about":
        about = "another transform"
    else:
        files[0].with_name("digest").write_text("[]")
    assert digest(files, about=about) == "new"


def test_a_damaged_memory_of_a_digest_is_not_believed(files):
    stamp = files[0].with_name("digest")
    assert digest_once(files, stamp, "", lambda: "ab") == "ab"
    stamp.write_text(stamp.read_text().replace('"ab"', '"aa"'))
    assert digest_once(files, stamp, "", lambda: "ab") == "ab"


def test_a_digest_of_no_known_files_or_of_new_ones_is_not_remembered(files, monkeypatch, tmp_path):
    assert [digest_once([], tmp_path / "none", "", lambda value=value: value) for value in ("1", "2")] == ["1", "2"]
    monkeypatch.setattr(verified_files, "SETTLED_SECONDS", 60.0)
    assert [digest(files, value) for value in ("first", "second")] == ["first", "second"]
