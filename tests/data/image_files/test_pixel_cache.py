"""Pictures are decoded once, again when anything that decides them changes, and never taken from a damaged cache."""

import io
import os
import pickle
import shutil
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_data import everything, fill, png

import ldm.data.image_files.pixel_cache as pixels_module
from ldm.data.image_files.dataset import file_splits
from ldm.utils import verified_files
from ldm.utils.errors import UserError


@pytest.fixture
def decodings(monkeypatch):
    """How often a picture was decoded."""
    calls = []

    def counted(*args, original=pixels_module.map_pictures, **options):
        for pair in original(*args, **options):
            calls.append(1)
            yield pair

    monkeypatch.setattr(pixels_module, "map_pictures", counted)
    return calls


def test_pictures_are_decoded_once_and_again_when_one_changes(root, options, decodings):
    fill(root, 5)
    first = file_splits(options(root))
    assert len(decodings) == 5
    os.utime(root / "0.png")
    moved = root.rename(root.with_name("moved"))
    (moved / "1.txt").write_text("a new caption")
    second = file_splits(options(moved))
    assert len(decodings) == 5
    assert second["train"].fingerprint == first["train"].fingerprint
    (moved / "0.png").write_bytes(png(99))
    third = file_splits(options(moved))
    assert len(decodings) == 10
    assert everything(third)["0.png"][0] == 99
    prints = [[data.fingerprint for data in splits.values()] for splits in (first, third)]
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    "change",
    [{"resolution": 24}, {"channels": 3}, {"resize": "pad"}, {"background": 0}],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_that_decides_pixels_makes_a_new_cache(root, options, decodings, change):
    fill(root, 2)
    before = file_splits(options(root))["train"].fingerprint
    assert file_splits(options(root, **change))["train"].fingerprint != before
    assert len(decodings) == 4


@pytest.mark.parametrize("harm", ["flip a bit", "cut", "no manifest", "bad manifest", "other rows"])
def test_a_damaged_cache_is_built_anew(root, options, decodings, harm):
    fill(root, 4)
    expected = everything(file_splits(options(root)))
    array, manifest = (next((root.parent / "cache").glob(f"*{end}")) for end in (".npy", ".manifest"))
    if harm == "flip a bit":
        data = bytearray(array.read_bytes())
        data[-100] ^= 1
        array.write_bytes(data)
    elif harm == "cut":
        array.write_bytes(array.read_bytes()[:-50])
    elif harm == "no manifest":
        manifest.unlink()
    elif harm == "bad manifest":
        manifest.write_text("{")
    else:
        manifest.write_text(manifest.read_text().replace('"rows": [0, ', '"rows": ['))
    assert everything(file_splits(options(root))) == expected
    assert len(decodings) == 8


def test_a_build_that_dies_leaves_nothing_that_counts(root, options, monkeypatch):
    fill(root, 4)
    original = os.replace
    for failing in (1, 2):  # before the array is in place, then before the manifest is
        calls = []

        def replace(a, b, failing=failing, calls=calls):
            calls.append(b)
            if len(calls) == failing:
                raise OSError(28, "No space left on device")
            original(a, b)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(UserError, match="cannot write .*No space left"):
            file_splits(options(root))
        assert len(calls) == failing  # the fault did happen
        cache = root.parent / "cache"
        assert not list(cache.glob("*.manifest"))
        assert not list(cache.glob("*.tmp"))
    monkeypatch.undo()
    assert len(everything(file_splits(options(root)))) == 4


def test_the_cache_array_is_a_plain_npy_without_room_for_bad_pictures(root, options):
    fill(root, 12)
    (root / "3.png").write_bytes(b"junk")
    file_splits(options(root, max_bad_fraction=0.5))
    array = np.load(next((root.parent / "cache").glob("*.npy")))
    assert array.shape == (11, 16, 16, 1)
    assert array[:, 0, 0, 0].tolist() == [0, 1, 10, 11, 2, 4, 5, 6, 7, 8, 9]  # in order of the names


def test_the_cache_may_not_lie_in_the_data(root, options):
    fill(root, 2)
    inside = options(root).model_copy(update={"cache_dir": root / "cache"})
    with pytest.raises(UserError, match="cache_dir .* lies in the data folder"):
        file_splits(inside)
    assert len(list(root.iterdir())) == 2


def test_a_worker_process_gets_the_data_without_the_pixels(root, options):
    fill(root, 4)
    train = file_splits(options(root, resolution=256))["train"]
    picture = train.image(0)
    sent = pickle.dumps(train)
    assert len(sent) < 10_000
    np.testing.assert_array_equal(pickle.loads(sent).image(0), picture)


def test_pictures_are_private_copies_and_indices_are_checked(root, options):
    fill(root, 4)
    train = file_splits(options(root))["train"]
    train.image(0)[:] = 200
    assert train.image(0).max() < 10
    np.testing.assert_array_equal(train.image(-1), train.image(len(train) - 1))
    with pytest.raises(IndexError):
        train.image(len(train))


@pytest.fixture
def readings(monkeypatch):
    """How often all files of a source were read to know whether its cache is there."""
    calls = []
    monkeypatch.setattr(verified_files, "SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(
        pixels_module, "read_key", lambda *args, original=pixels_module.read_key: calls.append(1) or original(*args)
    )
    return calls


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet", "datasets' parquet", "arrow"])
def test_a_source_is_read_once_and_again_when_it_changes(root, options, readings, kind):
    def write(shift: int) -> None:
        if kind == "folder":
            return [(root / f"{i}.png").write_bytes(png(i + shift)) for i in range(4)]
        if kind == "tar":
            with tarfile.open(root / "a.tar", "w") as archive:
                for i in range(4):
                    header = tarfile.TarInfo(f"{i}.png")
                    header.size = len(png(i + shift))
                    archive.addfile(header, io.BytesIO(png(i + shift)))
            return
        cells = [png(i + shift) for i in range(4)]
        if kind == "parquet":
            return pq.write_table(pa.table({"image": cells, "text": list("abcd")}), root / "a.parquet")
        rows = [{"bytes": cell, "path": None} for cell in cells]
        table = pa.table({"image": rows, "text": list("abcd")})
        if kind == "arrow":
            shutil.rmtree(root / "saved", ignore_errors=True)
            return datasets.Dataset(table).save_to_disk(root / "saved")
        pq.write_table(table, root / "a.parquet")

    write(0)
    first = [file_splits(options(root))["train"].fingerprint for _ in range(2)]
    assert len(readings) == 1 and first[0] == first[1]
    write(9)
    assert file_splits(options(root))["train"].fingerprint != first[0]
    assert len(readings) == 2


def test_a_table_that_names_files_is_read_each_time(root, options, readings):
    fill(root, 2)
    pq.write_table(pa.table({"image": ["0.png", "1.png"], "text": ["a", "b"]}), root / "a.parquet")
    (root / "1.png").write_bytes(png(3))
    for _ in range(2):
        file_splits(options(root))
    rows = [{"bytes": png(0), "path": None}, {"bytes": None, "path": "1.png"}]
    pq.write_table(pa.table({"image": rows, "text": ["a", "b"]}), root / "a.parquet")
    for _ in range(2):
        file_splits(options(root))
    assert len(readings) == 4
