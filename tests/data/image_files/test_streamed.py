"""Shards are read by their places: every sample once in an epoch, in an order that (seed, epoch) decides."""

import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_hub import ROOT, TOKEN, LoopbackHub
from own_data import png
from packed import COUNTS, add, parquet_shard, tar_shard, write_shards

from ldm.data import apart, build
from ldm.data.image_files import streamed
from ldm.data.image_files.streamed import EpochOrder
from ldm.formats import shards as shards_module
from ldm.formats.shards import RowGroups, find_shards, is_pattern
from ldm.formats.sources import open_source
from ldm.utils.errors import UserError

TOTAL = sum(COUNTS)


def seen(data) -> list[tuple[int, str]]:
    """(level of the flat image, caption) of each sample."""
    rng = np.random.default_rng(0)
    return [(int(data.image(i)[0, 0, 0]), data.caption(i, rng)) for i in range(len(data))]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(any),
    lanes=st.integers(1, 9),
    window=st.integers(1, 70),
    epoch=st.integers(0, 3),
)
def test_an_epoch_has_every_sample_once_wherever_one_begins_to_look(counts, lanes, window, epoch):
    order = EpochOrder(np.array(counts), lanes, window, 7, epoch)
    samples = [order[position] for position in range(len(order))]
    assert sorted(samples) == list(range(sum(counts)))
    again = EpochOrder(np.array(counts), lanes, window, 7, epoch)
    for position in range(len(order) - 1, -1, -7):
        assert again[position] == samples[position]


def test_the_order_is_another_in_each_epoch_and_of_each_seed_and_only_windows_of_it_are_kept():
    counts = np.array(COUNTS)
    orders = {
        tuple(EpochOrder(counts, 2, 8, seed, epoch)[p] for p in range(TOTAL)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(orders) == 4
    large = EpochOrder(np.full(1000, 1000), 8, 256, 0, 0)
    samples = [large[position] for position in range(5000)]
    assert len(large._kept) == 2 and all(len(window) == 256 for window in large._kept.values())
    assert len({sample // 1000 for sample in samples[:256]}) == 8  # as many shards as lanes
    assert len(set(samples)) == 5000


@pytest.mark.parametrize("kind, more", [("tar", {}), ("tar", {"captions": "json"}), ("parquet", {})])
def test_images_and_captions_are_those_of_the_folder(root, options, kind, more):
    pattern = write_shards(root, kind, **more)
    splits = build(options(pattern, validation_fraction=0))
    assert seen(splits.train) == [(level, f"grey {level}") for level in range(TOTAL)]
    whole = build(options(root, validation_fraction=0)).train
    assert seen(whole) == seen(splits.train)
    assert splits.train.has_captions and not apart(splits.train, splits.validation)
    assert splits.train.ids[-1] == f"part-006.{kind}/000005" and len(splits.train.ids) == TOTAL


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_validation_is_apart_and_other_shards_move_no_sample(root, options, kind):
    pattern = write_shards(root, kind)
    first = build(options(pattern, validation_fraction=0.4))
    train, held = set(first.train.ids), set(first.validation.ids)
    assert apart(first.train, first.validation) and not train & held and len(train | held) == TOTAL and held and train
    assert sorted(seen(first.train) + seen(first.validation)) == [(n, f"grey {n}") for n in range(TOTAL)]
    write = tar_shard if kind == "tar" else parquet_shard
    write(root / f"part-000a.{kind}", range(100, 120))
    more = build(options(pattern, validation_fraction=0.4))
    assert train <= set(more.train.ids) and held <= set(more.validation.ids)
    assert more.train.fingerprint != first.train.fingerprint


def test_shards_named_as_splits_keep_them(root, options):
    tar_shard(root / "train-0.tar", range(5))
    tar_shard(root / "val-0.tar", range(5, 8))
    tar_shard(root / "test-0.tar", range(8, 9))
    splits = build(options(root / "*.tar"))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [5, 3, 1]
    assert apart(splits.train, splits.validation) and seen(splits.validation)[0] == (5, "grey 5")


def test_a_copy_in_another_process_reads_the_same(root, options):
    data = build(options(write_shards(root), validation_fraction=0)).train
    data.image(0)
    assert seen(pickle.loads(pickle.dumps(data))) == seen(data)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_is_indexed_once_and_again_when_it_changes(root, options, kind, monkeypatch):
    calls = []
    for name in ("tar_index", "parquet_index"):
        plain = getattr(shards_module, name)
        monkeypatch.setattr(shards_module, name, lambda *args, plain=plain: calls.append(args[0]) or plain(*args))
    pattern = write_shards(root, kind)
    prints = [build(options(pattern)).train.fingerprint for _ in range(2)]
    assert len(calls) == len(COUNTS) and prints[0] == prints[1]
    write = tar_shard if kind == "tar" else parquet_shard
    write(root / f"part-002.{kind}", range(200, 203))
    data = build(options(pattern, validation_fraction=0)).train
    assert len(calls) == len(COUNTS) + 1 and len(data) == TOTAL + 2 and data.fingerprint != prints[0]


def test_parquet_with_as_many_rows_of_other_images_is_not_taken_for_the_same(root, options):
    pattern = str(root / "part-*.parquet")
    root.mkdir(exist_ok=True)
    prints = []
    for size in ((16, 16), (16, 24)):
        parquet_shard(root / "part-000.parquet", range(9), size=size)
        prints.append(build(options(pattern)).train.fingerprint)
    rows = [{"bytes": png(level), "path": None} for level in range(9)]
    table = pa.table({"image": rows, "other": rows, "text": ["grey"] * 9})
    pq.write_table(table, root / "part-000.parquet")
    prints += [build(options(pattern, image_column=name)).train.fingerprint for name in ("image", "other")]
    assert len({*prints}) == 4


def test_row_groups_that_are_read_again_and_again_are_told_once(root, options, monkeypatch, caplog):
    monkeypatch.setattr(shards_module, "GROUP_BYTES", 1)
    monkeypatch.setattr(shards_module, "AGAIN", 3)
    data = build(options(write_shards(root, "parquet"), validation_fraction=0)).train
    for _ in range(2):
        seen(data)
    assert caplog.text.count("are read again and again") == 1


@pytest.mark.parametrize("kind", ["npy", "json"])
def test_a_damaged_index_is_made_again(root, options, kind):
    pattern = write_shards(root)
    first = build(options(pattern)).train.fingerprint
    for file in options(pattern).cache_dir.glob(f"shards/*.{kind}"):
        file.write_bytes(b"{damaged")
    splits = build(options(pattern, validation_fraction=0))
    assert len(seen(splits.train)) == TOTAL
    assert build(options(pattern)).train.fingerprint == first


def test_a_disk_that_fails_ends_it_and_marks_no_image_as_bad(root, options):
    pattern = write_shards(root)
    data = build(options(pattern, validation_fraction=0)).train
    whole = (root / "part-001.tar").read_bytes()
    (root / "part-001.tar").write_bytes(whole[:700])
    with pytest.raises(UserError, match=r"part-001.tar, image \d: the archive ends before the file does"):
        seen(data)
    (root / "part-001.tar").write_bytes(whole)
    assert len(set(seen(data))) == TOTAL


def test_the_next_image_stands_for_one_that_cannot_be_read_with_its_caption(root, options, caplog):
    with tarfile.open(root / "a.tar", "w") as archive:
        for i in range(6):
            add(archive, f"{i}.png", b"no image" if i in (2, 3, 5) else png(i))
            add(archive, f"{i}.txt", f"grey {i}".encode())
    pattern = str(root / "*.tar")
    data = build(options(pattern, validation_fraction=0)).train
    expected = [(i, f"grey {i}") for i in (0, 1, 4, 4, 4, 0)]
    assert seen(data) == expected
    assert caplog.text.count("is left out") == 3 and "a.tar, image 2" in caplog.text
    rng = np.random.default_rng(0)
    another = build(options(pattern, validation_fraction=0)).train  # who has the cache of latents sees no image
    assert [another.caption(i, rng) for i in range(6)] == [text for _, text in expected]


def test_a_caption_that_is_no_text_is_left_out(root, options, caplog):
    with tarfile.open(root / "a.tar", "w") as archive:
        for name, data in (("a.png", png(1)), ("a.txt", b"\xff\xfe\xfa"), ("b.png", png(2)), ("b.txt", b"two")):
            add(archive, name, data)
    assert seen(build(options(root / "*.tar", validation_fraction=0)).train) == [(1, ""), (2, "two")]
    assert "a.tar: the caption of image 0 is left out: not UTF-16" in caplog.text


def test_too_many_bad_images_end_it(root, options, monkeypatch):
    monkeypatch.setattr(streamed, "FEW_BAD", 1)
    with tarfile.open(root / "a.tar", "w") as archive:
        for i in range(6):
            add(archive, f"{i}.png", b"no image" if i > 2 else png(i))
    data = build(options(root / "*.tar", validation_fraction=0, max_bad_fraction=0.2)).train
    with pytest.raises(UserError, match=r"2 of 6 images .* cannot be used .*allows 20.0%.*a.tar, image 4"):
        seen(data)
    assert not data.has_captions


def test_a_process_keeps_few_row_groups(root, options, monkeypatch):
    monkeypatch.setattr(shards_module, "GROUP_BYTES", 1)
    data = build(options(write_shards(root, "parquet"), validation_fraction=0)).train
    assert seen(data)[::-1] == [(level, f"grey {level}") for level in range(TOTAL)][::-1]
    assert len(data.shards._groups._tables) == 1
    assert isinstance(data.shards._groups, RowGroups)


@pytest.mark.parametrize(
    "pattern, words",
    [
        ("nothing-*.tar", "fits no file"),
        ("part-{000..009}.tar", r"part-007.tar does not exist"),
        ("*", r"must fit .tar files or .parquet files alone, got notes.txt"),
        ("part-{000,001}.{tar,parquet}", r"\.parquet does not exist"),
    ],
)
def test_patterns_that_fit_nothing_or_too_much_say_so(root, options, monkeypatch, pattern, words):
    write_shards(root)
    (root / "notes.txt").write_text("notes")
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=words):
        build(options(pattern))


def test_a_pattern_is_spelled_out(root, options, monkeypatch):
    write_shards(root)
    monkeypatch.chdir(root)
    assert len(build(options("part-*.tar", validation_fraction=0)).train) == TOTAL
    assert find_shards("part-{005..006}.tar") == ["part-005.tar", "part-006.tar"]
    assert find_shards("part-00{1,4}.t?r") == ["part-001.tar", "part-004.tar"]
    assert is_pattern("a/*.tar") and is_pattern("hf://datasets/a/b/*.parquet") and not is_pattern("user/name")
    (root / "my [old] images").mkdir()
    assert not is_pattern("my [old] images")


OF_THE_HUB = """
import sys
import numpy as np
from ldm.config.settings import DataOptions
from ldm.data import build

def levels(source, **files):
    options = DataOptions(source=source, resolution=16, cache_dir="cache", files={"validation_fraction": 0, **files})
    data, rng = build(options).train, np.random.default_rng(0)
    return [int(data.image(i)[0, 0, 0]) for i in range(len(data))], data.ids[-1], data.caption(3, rng)

print(levels("hf://datasets/me/set/data/train-*.parquet"))
print(levels("hf://datasets/me/set/data/train-*.parquet", revision="old")[0])
for source in ("hf://datasets/me/set/*.tar", "hf://datasets/me/none/*.parquet"):
    try:
        levels(source)
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_parquet_files_of_the_hub_are_read_row_group_by_row_group(tmp_path):
    hub = LoopbackHub()
    for name, levels in (("a", range(9)), ("b", range(9, 14))):
        parquet_shard(tmp_path / name, levels)
    contents = [(tmp_path / name).read_bytes() for name in "ab"]
    hub.create("datasets/me/set", {"data/train-0.parquet": contents[0], "x.tar": b"", "README.md": b""})
    hub.repos["datasets/me/set"].branches["old"] = list(hub.repos["datasets/me/set"].branches["main"])
    hub.repos["datasets/me/set"].commit(
        "main", {f"data/train-{n}.parquet": contents[n] for n in (0, 1)} | {"x.tar": b""}
    )
    told = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", OF_THE_HUB]
    done = subprocess.run(command, env=kept | told | {"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True)
    hub.shutdown()
    lines = done.stdout.splitlines()
    assert lines[:2] == [str((list(range(14)), "train-1.parquet/000004", "grey 3")), str(list(range(9)))], done.stderr
    assert "of the Hub only parquet files are streamed" in done.stdout and TOKEN not in done.stdout + done.stderr
    assert "UserError cannot read hf://datasets/me/none/*.parquet" in lines[3] or "fits no file" in lines[3]


@pytest.mark.parametrize("asked", [{"horizontal_flip": True}, {"bucket_step": 16}, {"class_captions": True}])
def test_what_needs_a_list_of_all_images_is_refused(root, options, asked):
    with pytest.raises(UserError, match=f"data.files.{next(iter(asked))} needs a list of all images"):
        build(options(write_shards(root), **asked))


def test_what_reads_whole_data_sets_wants_the_folder(root, options):
    with pytest.raises(UserError, match="here give their folder"):
        open_source(options(write_shards(root)))


def test_a_cut_archive_and_wrong_columns_are_told(root, options):
    pattern = write_shards(root)
    (root / "part-003.tar").write_bytes((root / "part-003.tar").read_bytes()[:3000])
    with pytest.raises(UserError, match="part-003.tar as an uncompressed tar"):
        build(options(pattern))
    pattern = write_shards(root / "tables", "parquet")
    with pytest.raises(UserError, match="no caption column 'caption'.*perhaps 'text'"):
        build(options(pattern, caption_column="caption"))
