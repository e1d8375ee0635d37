"""Damaged, odd and hostile pictures, through `ldm data check` and the data of a training.

Each is used or listed with its reason, the counts add up, none hangs or takes more memory than a worker may have, and
the folder stays as it was, to the byte and the time stamp. What right pixels are is in tests/data/test_decoding.py;
that too many bad pictures end the run, with names and what to do, in tests/data/image_files/test_dataset.py.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import resource
import signal
import socket
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import crafted, damaged, seeds

from ldm.cli.main import build_parser
from ldm.config.settings import DataOptions, FileOptions
from ldm.data import build
from ldm.formats import decode_workers as workers
from ldm.formats.decoding import ImageError
from ldm.utils.errors import UserError


def tree_hash(folder: Path) -> str:
    """Of every entry below a folder: its name, kind, mode, time of change, and contents or target."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        target = os.readlink(path) if path.is_symlink() else ""
        content = path.read_bytes() if not path.is_symlink() and path.is_file() else b""
        entry = (os.fsencode(path.relative_to(folder)), about.st_mode, about.st_mtime_ns, target)
        digest.update(repr(entry).encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def check(source: Path, report: Path) -> dict:
    """What `ldm data check SOURCE --json REPORT` found."""
    argv = ["data", "check", str(source), "--json", str(report), "--max", "3"]
    args = build_parser(argv).parse_args(argv)
    code = args.run(args)
    found = json.loads(report.read_text())
    assert code == (1 if found["skipped"] else 0)
    return found


def training_ids(source: Path, cache: Path) -> set[str]:
    """Ids of the pictures that a training would use; the test's own pictures are few, so any number may be bad."""
    files = FileOptions(max_bad_fraction=1.0)
    splits = build(DataOptions(source=str(source), resolution=16, channels=3, cache_dir=cache, files=files))
    for data in (splits.train, splits.validation):
        assert all(data.image(i).shape == (16, 16, 3) for i in range(len(data)))
    return {*splits.train.ids, *splits.validation.ids}


def both_ways(source: Path, work: Path, names: set[str]) -> dict[str, str]:
    """Look a source over and build it: name -> reason of what is left out, after the counts have been compared."""
    found = check(source, work / "report.json")
    reasons = {entry["id"]: entry["reason"] for entry in found["skipped"]}
    assert found["pictures"] == len(names) and set(reasons) <= names
    assert all(reason and reason.isprintable() for reason in reasons.values())
    assert sum(found["splits"].values()) == len(names) - len(reasons)
    assert training_ids(source, work / "cache") == names - set(reasons)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 <= workers.MEMORY
    return reasons


def damaged_pictures(count: int, seed: int) -> dict[str, bytes]:
    """name -> contents; every kind of picture in turn."""
    rng, sound = random.Random(seed), seeds()
    kinds, all_sound = sorted(sound), list(sound.values())
    names = [f"{i:05d}-{kinds[i % len(kinds)]}" for i in range(count)]
    return {name: damaged(sound[name[6:]], rng, all_sound) for name in names}


def test_every_sound_picture_is_used(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, data in seeds().items():
        (folder / name).write_bytes(data)
    assert both_ways(folder, tmp_path, set(seeds())) == {}


def test_damaged_pictures_are_used_or_listed(tmp_path, trials, survived, capfd):
    folder = tmp_path / "mine"
    folder.mkdir()
    pictures = damaged_pictures(trials(300, 10_000), seed=1)
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    before = tree_hash(folder)
    reasons = both_ways(folder, tmp_path, set(pictures))
    assert tree_hash(folder) == before
    assert len(reasons) > 0.3 * len(pictures)  # the damage is real
    assert all("Traceback" not in text for text in capfd.readouterr())
    survived("damaged picture in a folder", len(pictures))


def test_damaged_pictures_in_a_table_are_used_or_listed(tmp_path, trials, survived):
    pictures = list(damaged_pictures(trials(100, 1000), seed=2).values())
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"image": pictures, "text": ["a"] * len(pictures)}), path)
    before = path.read_bytes()
    reasons = both_ways(path, tmp_path, {f"row-{i:06d}" for i in range(len(pictures))})
    assert path.read_bytes() == before and len(reasons) > 0.3 * len(pictures)
    survived("damaged picture in a parquet file", len(pictures))


def test_hostile_pictures_neither_hang_nor_fill_the_memory(tmp_path, monkeypatch, survived):
    monkeypatch.setattr(workers, "SECONDS", 2)
    monkeypatch.setattr(workers, "MEMORY", 2**29)
    folder = tmp_path / "mine"
    folder.mkdir()
    pictures = crafted()
    for name, (data, _) in pictures.items():
        (folder / name).write_bytes(data)
    before = tree_hash(folder)
    reasons = {entry["id"]: entry["reason"] for entry in check(folder, tmp_path / "report.json")["skipped"]}
    for name, (_, expected) in pictures.items():
        told = reasons.get(name, "")
        assert re.search(expected, told) if expected else not told, f"{name}: {told or 'used'}"
    assert tree_hash(folder) == before
    assert len(pictures) >= 40 and sum("takes more than" in reason for reason in reasons.values()) >= 4
    survived("hostile or odd picture", len(pictures))


@pytest.fixture
def odd_folder(tmp_path):
    """A folder of sound pictures under odd names and of things that are no pictures: (folder, name -> reason)."""
    folder, private = tmp_path / "mine", tmp_path / "private.png"
    folder.mkdir()
    sound = seeds()["RGB.png"]
    private.write_bytes(sound)
    composed = unicodedata.normalize("NFC", "e\u0301") + ".png"
    names = ["two\nlines.png", "\udcff\udcfe.png", composed, unicodedata.normalize("NFD", composed), "A.png", "a.png"]
    names += ["a.jpg", "-rf.png", "quote'\".png", "\x1b[31m.png", "\U0001f431.png", "x" * 240 + ".png", "fifo_text.png"]
    for name in names:
        (folder / name).write_bytes(sound)
    (folder / "directory.png").mkdir()
    (folder / "directory.png" / "inner.png").write_bytes(sound)
    for hidden in (".hidden.png", "._a.png"):
        (folder / hidden).write_bytes(b"junk")
    os.mkfifo(folder / "fifo.png")
    os.mkfifo(folder / "fifo_text.txt")
    (folder / "a.txt").write_text("a word")
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(folder):  # a short path: they are limited
        server.bind("socket.png")
    links = {"loop.png": "loop.png", "gone.png": "nothing.png", "out.png": private, "device.png": "/dev/zero"}
    for name, target in {
        **links,
        "inside.png": "a.png",
        "circle": ".",
        "outside": "/etc",
        "A.txt": "/dev/zero",
    }.items():
        (folder / name).symlink_to(target)
    out = "a link that leads out of the folder"
    bad = {
        "fifo.png": "not an ordinary file",
        "socket.png": "not an ordinary file",
        "fifo_text.png": "its .txt caption cannot be read: not an ordinary file",
        "loop.png": "too many levels of symbolic links",
        "gone.png": "no such file or directory",
        **dict.fromkeys(("out.png", "device.png"), out),
        "A.png": f"its .txt caption cannot be read: {out}",
    }
    if os.geteuid():  # root reads it all the same
        (folder / "secret.png").write_bytes(sound)
        (folder / "secret.png").chmod(0)
        bad["secret.png"] = "permission denied"
    return folder, bad, {*names, *bad, "inside.png", "directory.png/inner.png"}


def test_odd_names_and_odd_files_are_used_or_listed(odd_folder, tmp_path, capsys, survived):
    folder, bad, names = odd_folder
    before = [(path.name, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))]
    reasons = both_ways(folder, tmp_path, names)
    assert reasons.keys() == bad.keys()
    assert all(reasons[name].startswith(words) for name, words in bad.items())
    assert [(path.name, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))] == before
    notes = json.loads((tmp_path / "report.json").read_text())["notes"]
    assert any(re.search(r"differ in nothing but case or Unicode form: .*A.png = a.png", note) for note in notes)
    assert any(re.search(r"share one caption file: a.jpg = a.png", note) for note in notes)
    assert "links that lead out of the folder are left out: outside" in notes
    assert "\x1b" not in capsys.readouterr().out
    survived("odd name or odd file in a folder", len(names))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_decoder_that_crashes_costs_its_picture_alone(number, survived):
    worker = workers.Worker("look", {})
    try:
        sound = seeds()["RGB.png"]
        first = worker(sound)
        os.kill(worker._process.pid, number)
        with pytest.raises(ImageError, match="crashes its decoder"):
            worker(sound)
        assert worker(sound) == first
    finally:
        worker.stop()
    survived("crash of a decoder", 1)


def test_after_an_interruption_no_answer_is_taken_for_the_next_image(monkeypatch):
    worker, (one, two) = workers.Worker("look", {}), [*seeds().values()][:2]
    expected = worker(two)
    with monkeypatch.context() as patched:
        patched.setattr(workers, "receive", lambda stream: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            worker(one)
    assert worker(two) == expected
    worker.stop()


def test_a_decoder_killed_from_outside_is_not_the_pictures_fault(survived):
    worker = workers.Worker("look", {})
    worker(seeds()["RGB.png"])
    os.kill(worker._process.pid, signal.SIGTERM)  # sent to all processes of a job that is to save and end
    worker(seeds()["RGB.png"])
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"was killed \(signal 9\), as systems do when memory runs out"):
        worker(seeds()["RGB.png"])
    worker.stop()
    survived("kill of a decoder", 2)
