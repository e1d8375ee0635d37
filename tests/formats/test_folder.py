"""A folder made on the spot gives the samples, captions and splits that were put in."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_data import everything, fill, png, tree

from ldm.data.image_files.dataset import file_splits
from ldm.formats.safe_tree import Tree
from ldm.utils.errors import UserError


def test_sidecars(root, options):
    fill(root, 3)
    (root / "sub").mkdir()
    (root / "sub" / "x.PNG").write_bytes(png(9))
    (root / "0.txt").write_text(" a\u2028red\u00a0thing\r\n\n")
    (root / "sub" / "x.txt").write_bytes(b"\xef\xbb\xbfmarked")
    (root / "2.txt").write_bytes("wide".encode("utf-16"))
    before = tree(root)
    splits = file_splits(options(root))
    expected = {"0.png": (0, "a red thing"), "1.png": (1, ""), "2.png": (2, "wide"), "sub/x.PNG": (9, "marked")}
    assert everything(splits) == expected
    assert all(data.has_captions for data in splits.values())
    assert tree(root) == before


def test_no_captions_at_all(root, options):
    fill(root)
    splits = file_splits(options(root))
    assert not splits["train"].has_captions
    assert {caption for _, caption in everything(splits).values()} == {""}
    (root / "0.txt").write_text("words")
    assert not file_splits(options(root, caption_column=""))["train"].has_captions
    assert file_splits(options(root))["train"].has_captions


def test_metadata_csv_with_any_caption_column(root, options):
    fill(root, 3)
    (root / "metadata.csv").write_text('file_name,words\n0.png,"one, two"\n1.png,\n0.png,again\n')
    splits = file_splits(options(root, caption_column="words"))
    data = everything(splits)
    assert set(data) == {"0.png", "1.png"}  # 2.png is not listed
    assert data["1.png"] == (1, "")
    holder = next(d for d in splits.values() if "0.png" in d.ids)
    rng = np.random.default_rng(0)
    drawn = {holder.caption(holder.ids.index("0.png"), rng) for _ in range(40)}
    assert drawn == {"one, two", "again"}


def test_metadata_jsonl_with_lists_of_captions(root, options):
    fill(root, 2)
    rows = [{"file_name": "0.png", "text": ["a", "b", None, " a "]}, {"file_name": "1.png", "text": 7}]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    splits = file_splits(options(root))
    captions = {
        d.ids[i]: {d.caption(i, np.random.default_rng(s)) for s in range(30)} for d in splits.values() for i in [0]
    }
    assert captions == {"0.png": {"a", "b"}, "1.png": {"7"}}


def test_metadata_in_split_folders_names_files_beside_it(root, options):
    for split in ("train", "val", "test"):
        (root / split).mkdir()
        (root / split / "a.png").write_bytes(png(len(split)))
        (root / split / "metadata.csv").write_text(f"file_name,text\na.png,{split}\n")
    splits = file_splits(options(root))
    assert {name: data.ids for name, data in splits.items()} == {
        "train": ["train/a.png"],
        "validation": ["val/a.png"],
        "test": ["test/a.png"],
    }
    assert everything(splits)["val/a.png"] == (3, "val")


def test_train_beside_other_folders_is_a_kind_of_vehicle(root, options):
    for kind in ("train", "boat"):
        (root / kind).mkdir()
        (root / kind / "a.png").write_bytes(png(1))
    assert len(everything(file_splits(options(root)))) == 2


def test_metadata_parquet(root, options):
    fill(root, 2)
    pq.write_table(pa.table({"file_name": ["0.png", "1.png"], "text": ["a", "b"]}), root / "metadata.parquet")
    assert everything(file_splits(options(root))) == {"0.png": (0, "a"), "1.png": (1, "b")}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("file_name,text\n../secret.png,a\n", r"leads out of the folder"),
        ("file_name,text\n/etc/x.png,a\n", r"leads out of the folder"),
        ("file_name,text\nC:\\x.png,a\n", r"leads out of the folder"),
        ("file_name,text\nnone.png,a\nnil.png,b\n", r"names 2 files that do not exist: none.png, nil.png"),
        ("file_name,caption\n0.png,a\n", r"no caption column 'text'; it has 'caption'; perhaps 'caption'"),
        ("file_name,texts,n\n0.png,a,1\n", r"perhaps 'texts'"),
        ("name,text\n0.png,a\n", r"no column 'file_name' .* it has 'name', 'text'"),
        ("file_name,text\n0.png,a red, round thing\n", r"line 2: more fields than columns"),
        ("file_name,text\n", r"has no rows"),
        ("file_name,text\n,a\n", r"row 1 has no file_name"),
    ],
)
def test_wrong_metadata_is_told_in_one_line(root, options, metadata, words):
    fill(root, 1)
    (root.parent / "secret.png").write_bytes(png(0))
    (root / "metadata.csv").write_text(metadata)
    with pytest.raises(UserError, match=words) as caught:
        file_splits(options(root))
    assert "\n" not in str(caught.value)


def test_wrong_json_lines(root, options):
    fill(root, 1)
    for text, words in (("{oops", "line 1: not JSON"), ("[1]", "must be a JSON object"), ('{"a"' + ":[" * 9, "JSON")):
        (root / "metadata.jsonl").write_text(text)
        with pytest.raises(UserError, match=words):
            file_splits(options(root))
    (root / "metadata.jsonl").write_text('{"file_name": "0.png", "text": {"a": 1}}')
    with pytest.raises(UserError, match="must be text or a list of texts, got dict"):
        file_splits(options(root))
    (root / "metadata.jsonl").write_bytes(b'{"file_name": "0.png", "text": "\xc4\xe3"}')
    with pytest.raises(UserError, match="not UTF-8 .byte 32.: convert it"):
        file_splits(options(root))
    (root / "metadata.csv").write_text("file_name\n0.png\n")
    with pytest.raises(UserError, match="more than one metadata file"):
        file_splits(options(root))


def test_sources_that_hold_nothing(root, options):
    with pytest.raises(UserError, match="holds no images .nothing"):
        file_splits(options(root))
    (root / "notes.md").write_text("x")
    with pytest.raises(UserError, match="holds no images .files left out, by kind: .md .1"):
        file_splits(options(root))
    with pytest.raises(UserError, match="does not exist; give a folder"):
        file_splits(options(root / "nowhere"))
    with pytest.raises(UserError, match="is a single file"):
        file_splits(options(root / "notes.md"))


def test_hidden_files_and_loops_are_passed_over(root, options):
    fill(root, 2)
    (root / "._0.png").write_bytes(b"junk")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "0.png").write_bytes(b"junk")
    (root / "loop").symlink_to(root)
    (root / "sub").mkdir()
    (root / "sub" / "5.png").write_bytes(png(5))
    (root / "linked").symlink_to(root / "sub")
    assert Tree(root).files == ["0.png", "1.png", "linked/5.png", "sub/5.png"]
    assert everything(file_splits(options(root)))["linked/5.png"] == (5, "")


def test_links_out_of_the_folder_are_not_followed(root, options, caplog):
    fill(root, 2)
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    fill(elsewhere, 2)
    (elsewhere / "0.txt").write_text("private")
    (root / "linked").symlink_to(elsewhere)
    (root / "2.png").symlink_to(elsewhere / "0.png")
    (root / "1.txt").symlink_to(elsewhere / "0.txt")
    caplog.set_level(logging.WARNING)
    assert everything(file_splits(options(root, max_bad_fraction=0.9))) == {"0.png": (0, "")}
    assert "links that lead out of the folder are left out: linked" in caplog.text
    assert "1.png (its .txt caption cannot be read: a link that leads out of the folder" in caplog.text
    assert "2.png (a link that leads out of the folder" in caplog.text
    (root / "metadata.csv").symlink_to(elsewhere / "0.txt")
    with pytest.raises(UserError, match=r"cannot read .*metadata.csv: a link that leads out of the folder"):
        file_splits(options(root))


def test_a_snapshot_of_the_hub_cache_is_links_to_the_blobs_beside_it(root, options):
    (root / "blobs").mkdir()
    (root / "blobs" / "abc").write_bytes(png(7))
    snapshot = root / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "a.png").symlink_to("../../blobs/abc")
    assert everything(file_splits(options(snapshot))) == {"a.png": (7, "")}
