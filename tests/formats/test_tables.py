"""Parquet files and Hub sets give the pictures, captions and splits that were put in."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_data import everything, png

from ldm.data.image_files.dataset import file_splits
from ldm.utils.errors import UserError


def parquet(path: Path, levels, captions, **columns) -> None:
    images = [None if level is None else {"bytes": png(level), "path": "x"} for level in levels]
    pq.write_table(pa.table({"image": images, "text": captions, **columns}), path, row_group_size=2)


def test_a_parquet_file(root, options):
    path = root / "all.parquet"
    parquet(path, [5, 6, None, 7], [["a", "b"], ["c"], ["d"], []])
    data = everything(file_splits(options(path, max_bad_fraction=0.3)))
    assert {name: level for name, (level, _) in data.items()} == {"row-000000": 5, "row-000001": 6, "row-000003": 7}
    assert data["row-000001"][1] == "c"
    assert data["row-000003"][1] == ""


def test_plain_bytes_in_a_parquet_column(root, options):
    pq.write_table(pa.table({"img": [png(1), png(2)]}), root / "a.parquet")
    data = file_splits(options(root / "a.parquet", image_column="img", caption_column=""))
    assert sorted(level for level, _ in everything(data).values()) == [1, 2]


def test_a_folder_of_parquet_keeps_its_splits(root, options):
    (root / "data").mkdir()
    for i, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        parquet(root / "data" / f"{name}.parquet", [i], ["x"])
    (root / "preview.png").write_bytes(png(0))
    splits = file_splits(options(root))
    assert splits["test"].ids == ["data/test-00000-of-00001.parquet/row-000000"]
    assert len(splits["train"]) == len(splits["validation"]) == 1


def test_wrong_parquet(root, options):
    path = root / "a.parquet"
    parquet(path, [1], ["x"], number=[3])
    with pytest.raises(UserError, match=r"no image column 'img'; it has 'image', 'text', 'number'; perhaps 'image'"):
        file_splits(options(path, image_column="img"))
    with pytest.raises(UserError, match=r"no caption column 'txt'; .* perhaps 'text'"):
        file_splits(options(path, caption_column="txt"))
    with pytest.raises(UserError, match=r"column 'number' holds int64; images must be encoded files"):
        file_splits(options(path, image_column="number"))
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)  # the footer is whole, the first page is not
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"cannot read .*a.parquet as parquet"):
        file_splits(options(path))
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match=r"cannot read .*a.parquet as parquet"):
        file_splits(options(path))


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets.load_dataset`: real data sets, made here, and a record of what was asked for."""
    import datasets

    asked = []

    def publish(**splits):
        parts = {}
        for name, (levels, labels) in splits.items():
            kind = datasets.ClassLabel(names=["cat", "dog"]) if isinstance(labels[0], int) else datasets.Value("string")
            features = datasets.Features({"image": datasets.Image(), "text": kind})
            rows = {"image": [{"bytes": png(level), "path": None} for level in levels], "text": labels}
            parts[name] = datasets.Dataset.from_dict(rows, features=features)

        def load(name, revision=None):
            asked.append((name, revision))
            return datasets.DatasetDict(parts)

        monkeypatch.setattr(datasets, "load_dataset", load)
        return asked

    return publish


def test_a_hub_set_keeps_its_splits_and_ids(hub, options):
    asked = hub(train=([1, 2], ["a", "b"]), validation=([3], ["c"]), test=([4], ["d"]), extra=([5], ["e"]))
    splits = file_splits(options("someone/pictures", revision="v1"))
    assert asked == [("someone/pictures", "v1")]
    assert {name: data.ids for name, data in splits.items()} == {
        "train": ["train/row-000000", "train/row-000001"],
        "validation": ["validation/row-000000"],
        "test": ["test/row-000000"],
    }
    assert everything(splits)["test/row-000000"] == (4, "d")


def test_a_hub_set_with_one_split_and_classes_for_captions(hub, options):
    hub(full=([1, 2, 3, 4], [0, 1, 0, -1]))
    data = everything(file_splits(options("someone/pictures")))
    assert data == {f"row-00000{i}": (i + 1, word) for i, word in enumerate(["cat", "dog", "cat", ""])}


def test_a_hub_set_with_wrong_columns(hub, options):
    hub(train=([1], ["a"]))
    with pytest.raises(UserError, match=r"someone/pictures, split train has no image column 'img'"):
        file_splits(options("someone/pictures", image_column="img"))
    with pytest.raises(UserError, match=r"column 'text' holds .*; it must hold images"):
        file_splits(options("someone/pictures", image_column="text", caption_column=""))


def test_a_hub_set_that_cannot_be_had(monkeypatch, options):
    import datasets

    def fails(name, revision=None):
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(
        UserError, match=r"'a/b' is no file or folder here.*revision v9.*Couldn't reach the Hub.*network"
    ):
        file_splits(options("a/b", revision="v9"))
