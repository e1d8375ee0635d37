"""What people bring from other tools: the right number of images, captions and splits, and a note on all else."""

import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from odd_folders import images, saved, tar
from own_data import everything, png

from ldm.data.image_files.dataset import file_splits
from ldm.formats import optional_decoders
from ldm.formats.sources import open_source
from ldm.utils.errors import UserError


@pytest.fixture
def bare(monkeypatch):
    """An installation without the extra `formats`."""
    monkeypatch.setattr(optional_decoders, "find_spec", lambda name: None)
    monkeypatch.setattr("ldm.formats.layout.find_spec", lambda name: None)
    optional_decoders.extra_suffixes.cache_clear()
    yield
    optional_decoders.extra_suffixes.cache_clear()


def captions_of(source) -> dict[str, tuple[str, ...]]:
    return {sample.id: sample.captions for sample in source.samples}


def notes_of(source) -> str:
    return "\n".join(source.notes)


# ---- kohya and classes -----------------------------------------------------------------------------------------------


def test_kohya_folders_have_captions_repeats_and_class_names(root, options):
    images(root, [f"10_fruit/{i}" for i in range(4)] + [f"5_face mark/{i}" for i in range(4)])
    for i in range(3):
        (root / "10_fruit" / f"{i}.caption").write_text("an apple")
    source = open_source(options(root))
    assert [captions for captions in captions_of(source).values() if captions] == [("an apple",)] * 3
    assert {sample.repeats for sample in source.samples} == {1}
    assert "data.files.repeats true samples 10_name ten times as often" in notes_of(source)
    source = open_source(options(root, repeats=True, class_captions=True))
    assert {(sample.id[0], sample.repeats) for sample in source.samples} == {("1", 10), ("5", 5)}
    assert captions_of(source)["10_fruit/3.png"] == ("fruit",)
    assert captions_of(source)["5_face mark/0.png"] == ("face mark",)
    assert source.captions_from == [".caption files beside the images", "names of folders"]
    assert not source.notes


def test_repeats_weigh_training_images_alone(root, options):
    images(root, [f"30_a/{i}" for i in range(20)] + [f"10_b/{i}" for i in range(20)])
    plain, weighed = file_splits(options(root)), file_splits(options(root, repeats=True, horizontal_flip=True))
    assert plain["train"].weights is None
    train = weighed["train"]
    assert train.weights.shape == (len(train),) and train.weights.sum() == pytest.approx(1)
    ratio = {name: weight / train.weights.min() for name, weight in zip(train.ids, train.weights, strict=True)}
    assert all(value == pytest.approx(3 if name.startswith("30") else 1) for name, value in ratio.items())
    assert plain["train"].fingerprint == file_splits(options(root, repeats=True))["train"].fingerprint


def test_folders_of_classes_are_captions_by_a_setting_and_offered(root, options):
    images(root, ["train/red_apple/0", "train/flag/1", "val/flag/2"])
    source = open_source(options(root))
    assert not any(captions_of(source).values())
    assert "no captions, but 2 named folders (flag, red apple): data.files.class_captions true" in notes_of(source)
    source = open_source(options(root, class_captions=True))
    assert captions_of(source) == {
        "train/flag/1.png": ("flag",),
        "train/red_apple/0.png": ("red apple",),
        "val/flag/2.png": ("flag",),
    }
    assert [sample.split for sample in source.samples] == ["train", "train", "validation"]


def test_tags_are_shuffled_but_for_those_that_are_kept(root, options):
    images(root, ["0", "1"])
    for i in range(2):
        (root / f"{i}.txt").write_text("trigger, 1girl, solo, red hair, smile")
    assert "shuffle_tags true shuffles them" in notes_of(open_source(options(root)))
    assert everything(file_splits(options(root)))["0.png"][1] == "trigger, 1girl, solo, red hair, smile"
    data = file_splits(options(root, shuffle_tags=True, keep_tags=1))["train"]
    drawn = [data.caption(0, np.random.default_rng(seed)) for seed in range(20)]
    assert len(set(drawn)) > 10 and all(text.startswith("trigger, ") for text in drawn)
    assert {tuple(sorted(text.split(", "))) for text in drawn} == {("1girl", "red hair", "smile", "solo", "trigger")}
    assert drawn[3] == data.caption(0, np.random.default_rng(3))


# ---- caption files ---------------------------------------------------------------------------------------------------


def test_captions_of_several_files_are_all_used(root, options):
    images(root, ["a", "b", "c", "d"])
    (root / "a.txt").write_text("one\ntwo")
    (root / "a.caption").write_text("two\nthree")
    (root / "b.json").write_text('{"text": "of the JSON", "width": 3}')
    (root / "c.json").write_text('{"width": 3}')
    (root / "d.TXT").write_text("upper")
    (root / "orphan.txt").write_text("nobody's")
    source = open_source(options(root))
    expected = {"a.png": ("one", "two", "three"), "b.png": ("of the JSON",), "c.png": (), "d.png": ("upper",)}
    assert captions_of(source) == expected
    assert source.captions_from == [".caption and .json and .txt files beside the images"]
    assert "files left out, by kind: .json (1: c.json), .txt (1: orphan.txt)" in notes_of(source)
    assert "images with several lines beside them: 1;" in notes_of(source)


def test_captions_csv_fills_in_and_leaves_no_image_out(root, options):
    images(root, ["a", "b", "c"])
    (root / "a.txt").write_text("its own")
    (root / "captions.csv").write_text("file_name;text\na.png;other\nb.png;a, red thing\n")
    source = open_source(options(root))
    assert captions_of(source) == {"a.png": ("its own",), "b.png": ("a, red thing",), "c.png": ()}
    assert source.captions_from == [".txt files beside the images", "captions.csv"] and not source.notes
    (root / "captions.csv").write_text("picture,words\na.png,other\n")
    assert "not used: " in notes_of(open_source(options(root)))
    (root / "captions.csv").write_text("file_name,text\nx.png,other\n")
    assert "captions.csv names 1 files that are no images here: x.png" in notes_of(open_source(options(root)))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_are_separated_by_what_their_header_is(separator, root, options):
    images(root, ["a", "b"])
    rows = [("file_name", "text"), ("a.png", '"one; two, three"'), ("b.png", '"say ""x"""')]
    (root / "metadata.csv").write_text("\n".join(separator.join(row) for row in rows))
    assert captions_of(open_source(options(root))) == {"a.png": ("one; two, three",), "b.png": ('say "x"',)}


def test_a_column_of_paths_of_another_name_is_named(root, options):
    images(root, ["a"])
    (root / "metadata.jsonl").write_text('{"path": "a.png", "text": "x"}')
    with pytest.raises(UserError, match="'file_name'.*perhaps 'path': set data.files.image_column"):
        open_source(options(root))
    assert captions_of(open_source(options(root, image_column="path"))) == {"a.png": ("x",)}


def test_sidecars_beside_a_table_are_named_as_not_read(root, options):
    images(root, ["a"])
    (root / "a.txt").write_text("x")
    (root / "metadata.csv").write_text("file_name,text\na.png,y\n")
    source = open_source(options(root))
    assert captions_of(source) == {"a.png": ("y",)}
    assert source.notes == ["files left out, by kind: .txt (1: a.txt)"]


def test_other_files_are_counted_by_kind(root, options, bare):
    images(root, ["a"])
    for name in ("b.heic", "c.HEIC", "d.svg", "e.jxl", "f.psd", "Thumbs.db", ".g.png", "._a.png"):
        (root / name).write_bytes(b"x")
    note, hidden = open_source(options(root)).notes
    assert (
        note.startswith("files left out, by kind: .heic (2), ")
        and "`pip install 'ldm[formats]'` reads .heic, .svg" in note
    )
    for words in (".svg (1)", ".jxl (1)", ".psd (1)", ".db (1)"):
        assert words in note
    assert hidden == "hidden images are left out: .g.png"


# ---- tar archives ----------------------------------------------------------------------------------------------------


def shard(path, levels, **more):
    members = {}
    for level in levels:
        members |= {f"{level:03}.png": png(level), f"{level:03}.txt": f"number {level}".encode()}
    return tar(path, members | more)


def test_a_webdataset_is_read_and_not_unpacked(root, options):
    shard(root / "train-000.tar", [1, 2, 3])
    shard(root / "train-001.tar", [4, 5])
    shard(root / "val-000.tar", [6], **{"006.cls": b"3"})
    splits = file_splits(options(root))
    assert everything({"train": splits["train"]}) == {
        f"train-00{shard}.tar/00{i}.png": (i, f"number {i}") for i, shard in ((1, 0), (2, 0), (3, 0), (4, 1), (5, 1))
    }
    assert splits["validation"].ids == ["val-000.tar/006.png"]
    assert notes_of(open_source(options(root))) == "files left out, by kind: .cls (1)"
    assert {path.suffix for path in root.iterdir()} == {".tar"}


def test_one_tar_with_json_captions_and_folders(root, options):
    one = json.dumps({"text": ["a", "b"]}).encode()
    path = tar(root / "x.tar", {"./images/a.png": png(7), "images/a.json": one, "images/.b.png": png(0)})
    source = open_source(options(path))
    assert captions_of(source) == {"images/a.png": ("a", "b")}
    assert [data for _, data in source.encoded()] == [png(7)]


def test_hostile_members_of_a_tar_are_passed_over(root, options):
    secret = root.parent / "secret.png"
    secret.write_bytes(png(9))
    path = tar(root / "x.tar", {"a.png": png(1), "../../secret.png": png(2)})
    with tarfile.open(path, "a") as archive:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, str(secret)
            archive.addfile(entry)
    source = open_source(options(path))
    assert [sample.id for sample in source.samples] == ["a.png"]
    assert [data for _, data in source.encoded()] == [png(1)]


def test_damaged_tars_are_refused_in_one_line(root, options):
    path = shard(root / "x.tar", [1, 2])
    whole = path.read_bytes()
    path.write_bytes(whole[:1100])  # in the second member's header
    with pytest.raises(
        UserError, match="cannot read .*x.tar as an uncompressed tar: it is damaged or cut at byte 1024"
    ):
        open_source(options(path))
    path.write_bytes(whole[:600])  # in the first member itself
    with pytest.raises(UserError, match="cannot read .*x.tar as an uncompressed tar: unexpected end of data"):
        open_source(options(path))
    huge = bytearray(whole)
    entry = tarfile.TarInfo("long")
    entry.type, entry.size = tarfile.XHDTYPE, 2**33
    huge[:512] = entry.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(huge)
    with pytest.raises(UserError, match="cannot read .*x.tar as an uncompressed tar: a header of"):
        open_source(options(path))
    (root / "y.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="unpack it and give the folder"):
        open_source(options(root / "y.zip"))


# ---- tables ----------------------------------------------------------------------------------------------------------

LABELS = {"text": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def labelled(path, column, features=LABELS):
    table = pa.table({"image": [{"bytes": png(i), "path": None} for i in range(len(column))], "text": column})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)
    return path


def test_classes_of_a_parquet_file_are_their_names(root, options):
    path = labelled(root / "a.parquet", [0, 1, -1, None, 7])
    assert [s.captions for s in open_source(options(path)).samples] == [("cat",), ("dog",), (), (), ()]
    lists = {"text": {"feature": LABELS["text"], "_type": "List"}}
    path = labelled(root / "b.parquet", [[0, 1], [1]], lists)
    assert [s.captions for s in open_source(options(path)).samples] == [("cat", "dog"), ("dog",)]
    path = labelled(root / "c.parquet", [0, 1], {})
    source = open_source(options(path))
    assert [s.captions for s in source.samples] == [("0",), ("1",)]
    assert "column 'text' holds numbers without names" in notes_of(source)


def test_classes_of_metadata_parquet_are_their_names(root, options):
    images(root, ["a", "b"])
    table = pa.table({"file_name": ["a.png", "b.png"], "text": [1, 0]})
    metadata = {"huggingface": json.dumps({"info": {"features": LABELS}})}
    pq.write_table(table.replace_schema_metadata(metadata), root / "metadata.parquet")
    assert captions_of(open_source(options(root))) == {"a.png": ("dog",), "b.png": ("cat",)}


def test_parquet_of_paths_reads_files_in_the_folder_alone(root, options):
    images(root, ["pics/a", "data/b"])
    (root.parent / "secret.png").write_bytes(png(9))
    paths = ["pics/a.png", "b.png", str(root / "pics" / "a.png"), "../secret.png", "/etc/passwd", "none.png", None]
    table = pa.table({"image": paths, "text": list("abcdefg")})
    (root / "data").mkdir(exist_ok=True)
    pq.write_table(table, root / "data" / "x.parquet")
    found = [data for _, data in open_source(options(root)).encoded()]
    assert found[:3] == [png(0), png(1), png(0)]
    words = [
        "a link that leads out of the folder",
        "names /etc/passwd: outside of the data folder",
        "no such file",
        "no image",
    ]
    assert all(part in str(data) for part, data in zip(words, found[3:], strict=True))
    nested = [{"bytes": None, "path": "pics/a.png"}, {"bytes": png(5), "path": "/etc/passwd"}]
    pq.write_table(pa.table({"image": nested, "text": ["a", "b"]}), root / "data" / "x.parquet")
    assert [data for _, data in open_source(options(root)).encoded()] == [png(0), png(5)]


def test_a_folder_of_save_to_disk(root, options):
    saved(root / "one", [1, 2, 3], ["a", "b", "c"])
    (root / "one" / "cache-123.arrow").write_bytes(b"left by a map")
    source = open_source(options(root / "one"))
    assert captions_of(source) == {"row-000000": ("a",), "row-000001": ("b",), "row-000002": ("c",)}
    assert [data for _, data in source.encoded()] == [png(1), png(2), png(3)]
    assert notes_of(source) == "files left out, by kind: .arrow (1)"
    saved(root / "two" / "train", [1, 2], [0, 1], LABELS)
    saved(root / "two" / "test", [3], [1], LABELS)
    (root / "two" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    splits = file_splits(options(root / "two"))
    assert splits["test"].ids == ["test/data-00000-of-00001.arrow/row-000000"]
    assert everything({"test": splits["test"]}) == {splits["test"].ids[0]: (3, "dog")}


def test_what_datasets_writes_is_read(root, options):
    datasets = pytest.importorskip("datasets")
    images(root / "raw", ["a", "b"])
    rows = {"image": [str(root / "raw" / "a.png"), str(root / "raw" / "b.png")], "text": [1, 0]}
    features = datasets.Features(image=datasets.Image(), text=datasets.ClassLabel(names=["cat", "dog"]))
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(root / "saved")
    source = open_source(options(root / "saved"))
    assert [sample.captions for sample in source.samples] == [("dog",), ("cat",)]
    assert [data for _, data in source.encoded()] == [png(0), png(1)]


def test_damaged_arrow_files_are_refused_in_one_line(root, options):
    folder = saved(root / "one", [1, 2, 3], ["a", "b", "c"])
    file = folder / "data-00000-of-00001.arrow"
    whole = file.read_bytes()
    for data in (whole[:100], b"junk" * 50, whole[:-200]):
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"cannot read .*\.arrow as an Arrow file") as caught:
            list(open_source(options(folder)).encoded())
        assert "\n" not in str(caught.value)
