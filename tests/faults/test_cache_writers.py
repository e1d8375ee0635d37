"""Caches and exports whose writers are killed, run together, or find the disk full: whole, or not there."""

import os
import random
import resource
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from caches import KINDS, Work, contents, ended, fork, kill, leftovers, prepare
from safetensors.torch import load_file
from tiny_model import tiny_folder

import ldm.hub.export as export_module
from ldm.config.settings import DataOptions
from ldm.data.glyphs import dataset as glyphs
from ldm.hub.glyph_dataset import write_repository
from ldm.pipelines.loading import load_pipeline
from ldm.utils import atomic_files as disk
from ldm.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_graphs")


def undisturbed(tmp_path: Path, kind: str) -> tuple[Path, dict[str, bytes], float]:
    """A project, what its cache is like, and the seconds that building it takes; the cache is gone again."""
    project = prepare(tmp_path, kind)
    KINDS[kind](project)
    good = contents(project / "cache")
    shutil.rmtree(project / "cache")
    start = time.perf_counter()
    assert ended(fork(lambda: KINDS[kind](project), tmp_path / "told")) == 0
    assert contents(project / "cache") == good
    shutil.rmtree(project / "cache")
    return project, good, time.perf_counter() - start


# ---- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_killed_at_any_instant_is_done_again_unaided(tmp_path, trials, survived, kind):
    project, good, seconds = undisturbed(tmp_path, kind)
    rng, killed, half_done, cache = random.Random(0), 0, 0, project / "cache"
    while killed < trials(3, 50):
        shutil.rmtree(cache, ignore_errors=True)
        child = fork(lambda: KINDS[kind](project), tmp_path / "told")
        time.sleep(rng.uniform(0, seconds))
        if not kill(child):
            continue
        killed += 1
        half_done += bool(leftovers(cache))
        assert ended(fork(lambda: KINDS[kind](project), tmp_path / "told")) == 0, (tmp_path / "told.fault").read_text()
        assert contents(cache) == good
    assert half_done or killed < 50, "no kill fell into the writing"
    survived("kills: SIGKILL while a cache was built, and it was built again", killed)


def test_what_a_killed_build_left_is_swept_away_by_one_of_another_key_and_what_lives_is_not(tmp_path):
    folder, key, other = tmp_path, "a" * 24, "b" * 24

    def begin(then):
        with disk.exclusive_lock(folder / key), disk.staged(folder / key) as stage:
            (stage / "half").write_text("done")
            then()

    def write_other():
        with disk.exclusive_lock(folder / other), disk.staged(folder / other) as stage:
            (stage / "whole").write_text("done")

    ready, go = os.pipe()
    child = fork(lambda: begin(lambda: (os.write(go, b"1"), time.sleep(60))), tmp_path / "told")
    assert os.read(ready, 1) == b"1"
    write_other()
    assert any(name.endswith(".tmp") for name in leftovers(folder))  # its writer is alive
    assert kill(child)
    (folder / ".mine.tmp").write_text("of the user")
    write_other()
    assert leftovers(folder) == [".mine.tmp"] and not (folder / key).exists()


def test_an_export_killed_between_its_two_renames_gets_its_name_back(tmp_path, survived):
    """The earlier export stands aside at that instant, and the next writer puts it back before anything else."""
    model, out = tiny_folder(tmp_path / "model"), tmp_path / "out"
    export_module.export(model, out)
    good = contents(out)

    def die_at_second_rename():
        rename, folders = Path.replace, []

        def counted(path, target):
            folders.extend([path] * path.is_dir())
            return os.kill(os.getpid(), 9) if len(folders) == 2 else rename(path, target)

        Path.replace = counted
        export_module.export(model, out)

    assert ended(fork(die_at_second_rename, tmp_path / "told")) == -9
    assert not out.exists()
    with pytest.raises(ZeroDivisionError), disk.exclusive_lock(out):
        assert contents(out) == good
        raise ZeroDivisionError
    assert leftovers(tmp_path) == []
    survived("kills: between the two renames that put an export in its place", 1)


# ---- together --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_that_build_one_cache_do_it_once_and_both_have_it(tmp_path, monkeypatch, trials, survived, kind):
    project, good, _ = undisturbed(tmp_path, kind)
    work, cache = Work().watch(monkeypatch), project / "cache"
    KINDS[kind](project)
    once = work.done().total
    for trial in range(trials(3, 20)):
        shutil.rmtree(cache)
        ready, go = os.pipe()

        def build(name, start=ready):
            os.read(start, 1)  # both wait here, and start together
            KINDS[kind](project)
            (tmp_path / f"work-{name}").write_text(str(work.total))

        children = [fork(lambda name=name: build(name), tmp_path / f"told-{name}") for name in (0, 1)]
        os.write(go, b"12")
        assert [ended(child) for child in children] == [0, 0], [p.read_text() for p in tmp_path.glob("told-*.fault")]
        assert contents(cache) == good
        done = [int((tmp_path / f"work-{name}").read_text()) for name in (0, 1)]
        assert sorted(done) == [0, once], f"trial {trial}"
        os.close(ready), os.close(go)
    survived("caches: two processes built one at once", trials(3, 20))


def test_an_export_over_a_model_in_use_leaves_that_as_it_was(tmp_path):
    out = export_module.export(tiny_folder(tmp_path / "model"), tmp_path / "out")
    path = out / "unet/diffusion_pytorch_model.safetensors"
    used, mapped = load_pipeline(out), load_file(path)
    before = {name: tensor.clone() for name, tensor in mapped.items()}
    inode = path.stat().st_ino
    other = load_pipeline(tmp_path / "model")
    with torch.no_grad():
        other.unet.conv_in.weight += 1
    export_module.save_folder(other, tmp_path / "model", "tiny")
    export_module.export(tmp_path / "model", out)
    assert path.stat().st_ino != inode
    assert (load_file(path)["conv_in.weight"] == before["conv_in.weight"] + 1).all()
    for name, tensor in before.items():
        assert torch.equal(mapped[name], tensor) and torch.equal(used.unet.state_dict()[name], tensor)


# ---- disk full -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB, of which `leave(bytes)` leaves so much free."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")

    def leave(size: int) -> None:
        (place / "filler").unlink(missing_ok=True)
        free = shutil.disk_usage(place).free
        (place / "filler").write_bytes(bytes(max(0, free - size)))

    try:
        yield SimpleNamespace(place=place, leave=leave)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@contextmanager
def file_limit(size: int):
    """No file may grow beyond this: what a disk quota does, without being root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def artefact(kind: str, project: Path, monkeypatch):
    """(build a new one, load the earlier one, where both lie) of a cache, an export or a data set."""
    if kind in KINDS:
        KINDS[kind](project)
        constants = {
            "pixels": ("ldm.data.image_files.pixel_cache.DECODE_VERSION", 99),
            "latents": ("ldm.training.latent_cache.FORMAT", "99"),
        }
        constants |= {
            "glyphs": ("ldm.data.glyphs.rendering.RENDERER_VERSION", 99),
            "digits": ("ldm.data.digits.VERSION", 99),
        }

        def build():
            with monkeypatch.context() as other:
                other.setattr(*constants[kind])
                KINDS[kind](project)

        return build, lambda: KINDS[kind](project), project / "cache"
    project.mkdir()
    if kind == "export":
        model, out = tiny_folder(project.parent.parent / "model"), project / "out"
        export_module.export(model, out)
        return lambda: export_module.export(model, out), lambda: load_pipeline(out), project
    options = DataOptions(resolution=16, cache_dir=project.parent.parent / "cache", glyphs={"limit": 16})
    splits = glyphs.splits(options)
    write_repository(splits, options, project / "first")
    first = contents(project / "first")

    def load():
        assert contents(project / "first") == first

    return lambda: write_repository(splits, options, project / "second"), load, project


ARTEFACTS = (*KINDS, "export", "data set")


def refused(build, before: dict, place: Path) -> str | None:
    """The one line that is said, or None if there was room; nothing is left of what could not be written."""
    try:
        build()
    except UserError as error:
        assert contents(place) == before
        assert leftovers(place) == []
        assert str(place) in str(error) and "\n" not in str(error), error
        return str(error)
    return None


@pytest.mark.parametrize("asked", [True, False], ids=["asked before", "found out"])
@pytest.mark.parametrize("kind", ARTEFACTS)
def test_a_full_disk_leaves_what_was_there_and_nothing_half_done(
    small_disk, tmp_path, monkeypatch, trials, survived, kind, asked
):
    """`asked`: the room is known to be too little before; else it is used up by somebody else after that."""
    root = small_disk.place / "project"
    root.mkdir()
    project = prepare(root, kind) if kind in KINDS else root / "made"
    build, load, place = artefact(kind, project, monkeypatch)
    before, fired, made = contents(place), 0, Work().watch(monkeypatch)
    if not asked:
        for module in (
            "ldm.data.image_files.pixel_cache",
            "ldm.training.latent_cache",
            "ldm.data.glyphs.rendering",
            "ldm.data.digits",
        ):
            monkeypatch.setattr(f"{module}.require_free_space", lambda *_: None)
    size = sum(map(len, before.values()))
    for trial in range(trials(2, 6)):
        small_disk.leave(round(size * trial / 12))
        said = refused(build, before, place)
        if said is None:
            continue
        fired += 1
        assert ("MiB are free" in said) or not asked or kind in ("export", "data set"), said
        made.done()
        load()
        assert made.total == 0  # and not by making it again
    survived("disk full: refused in one line, and the earlier artefact still loads", fired)


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_a_file_that_may_not_grow_is_told_in_one_line(tmp_path, monkeypatch, trials, survived, kind):
    root = tmp_path / "root"
    root.mkdir()
    project = prepare(root, kind) if kind in KINDS else root / "made"
    build, load, place = artefact(kind, project, monkeypatch)
    before, fired = contents(place), 0
    largest = max(map(len, before.values()))
    for trial in range(trials(2, 6)):
        with file_limit(round(largest * (trial + 0.5) / 8)):
            said = refused(build, before, place)
        assert said is not None and "too large" in said.lower()
        fired += 1
        load()
    survived("disk full: a file that may not grow, refused in one line", fired)


def test_both_numbers_are_told_before_anything_is_written(tmp_path, monkeypatch):
    free = SimpleNamespace(free=3 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    disk.require_free_space(tmp_path / "not/there/yet", 3 * 2**20, "the cache")
    with pytest.raises(
        UserError, match=r"not/there/yet: it needs 4.0 MiB and 3.0 MiB are free; free disk space or set data"
    ):
        disk.require_free_space(tmp_path / "not/there/yet", 4 * 2**20, "the cache")
