"""Damaged and odd captions in .txt files and tables: accepted, or one line that names the file and the place."""

import codecs
import csv
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import damaged, png

from ldm.config.settings import DataOptions, FileOptions
from ldm.formats.sources import open_source
from ldm.utils.errors import UserError

WORDS = (
    "a red cat",
    "horizontal stacked glyph",
    "\u6c34\u6ef4\u77f3\u7a7f",
    "na\u00efve cafe\u0301",
    "\U0001f431\u200d\U0001f431",
)
ODD = (
    "", " ", "\n", "\r\n", "\t", "\0", "\ufeff", "\u202e", "\u2066", "\u2028", "\u00a0", "\u3000", "\u200b",
    "\x1b[31m", "\x85", "\x7f", "\ue000", "\U0010ffff", "\ufffe", "e" + "\u0301" * 300, "\"", "'", ",", ";", "\\",
    "\\n", "{}", "<|endoftext|>", "<|startoftext|>", "</w>", "x" * 10_000, "word " * 2000, "\u6c34" * 3000, "%s{}$HOME",
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030", "gbk", "big5", "latin-1", "shift_jis")


@pytest.fixture(scope="module")
def tokenizers():
    """The project's own, trained on such words, and CLIP's class without any."""
    from ldm.models.tokenizer import train_tokenizer

    return [train_tokenizer(words, 600, length) for words, length in ((WORDS * 3, 32), ([], 77))]


def text_of(rng: random.Random) -> str:
    return "".join(rng.choice(rng.choice((WORDS, ODD))) + rng.choice((" ", "")) for _ in range(rng.randint(0, 6)))


def bytes_of(rng: random.Random) -> bytes:
    """A caption in one of many encodings, now and then damaged; or noise."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randint(0, 60))
    data = text_of(rng).encode(rng.choice(ENCODINGS), "replace")
    return damaged(data, rng, [b"\xff\xfe\x00", b"\xc4\xe3"]) if data and rng.random() < 0.3 else data


def captions_of(path: Path, **files) -> list[tuple[str, ...]] | str:
    """The captions of a source, or why it is refused."""
    try:
        source = open_source(DataOptions(source=str(path), files=FileOptions(**files)))
    except UserError as error:
        assert str(path) in str(error) and len(str(error)) < 2000
        return " ".join(str(error).split())
    return [sample.captions for sample in source.samples]


def assert_tokenised(captions: list[str], tokenizers) -> None:
    from ldm.models.tokenizer import encode

    for tokenizer in tokenizers:
        ids = encode(tokenizer, captions)
        assert ids.shape == (len(captions), tokenizer.model_max_length)
        assert ids.min() >= 0 and ids.max() < len(tokenizer)


def test_fuzzed_caption_files_are_accepted_or_listed(tmp_path, tokenizers, trials, survived):
    rng, count = random.Random(1), trials(300, 2500)
    sound = png(8, 8)
    for i in range(count):
        (tmp_path / f"{i:05d}.png").write_bytes(sound)
        (tmp_path / f"{i:05d}.txt").write_bytes(bytes_of(rng))
    source = open_source(DataOptions(source=str(tmp_path)))
    reasons = {i: str(data) for i, data in source.encoded() if not isinstance(data, bytes)}
    assert len(source.samples) == count > len(reasons) > 0.1 * count
    for reason in reasons.values():
        assert reason.startswith("its .txt caption is not UTF-") and ("byte " in reason or "character " in reason)
    accepted = [caption for sample in source.samples for caption in sample.captions]
    assert len(accepted) > 0.3 * count
    assert all(caption.encode() and "\n" not in caption and "\0" not in caption for caption in accepted)
    assert_tokenised(accepted, tokenizers)
    survived("fuzzed caption file", count)


@pytest.mark.parametrize("encoding", ["gb18030", "big5"])
def test_a_caption_in_a_chinese_encoding_is_refused_with_the_way_out(encoding, tmp_path):
    (tmp_path / "a.png").write_bytes(png(8, 8))
    (tmp_path / "a.txt").write_bytes(b"a glyph: " + "\u7a7f".encode(encoding))
    [(_, reason)] = open_source(DataOptions(source=str(tmp_path))).encoded()
    assert "its .txt caption is not UTF-8 (byte 9)" in str(reason) and "iconv -f GB18030" in str(reason)
    (tmp_path / "metadata.csv").write_bytes(codecs.BOM_UTF8 + b"file_name,text\na.png," + "\u7a7f".encode(encoding))
    assert "metadata.csv is not UTF-8 (byte 24): convert it" in str(captions_of(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_wide_characters_without_a_mark_are_not_taken_for_words_of_one_letter(encoding, tmp_path):
    (tmp_path / "a.png").write_bytes(png(8, 8))
    (tmp_path / "a.txt").write_bytes("a red cat".encode(encoding))
    [(_, reason)] = open_source(DataOptions(source=str(tmp_path))).encoded()
    assert "not UTF-8 but perhaps UTF-16 or UTF-32 (NUL at character" in str(reason)


def csv_of(rng: random.Random, names: list[str]) -> bytes:
    stream = io.StringIO()
    columns = rng.choice(
        (["file_name", "text"], ["file_name", "text"], ["text", "file_name", "n"], ["file_name", "text", "text"])
    )
    writer = csv.writer(stream, quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    writer.writerow(columns)
    for name in names:
        row = {"file_name": name, "text": text_of(rng), "n": "1"}
        cells = [row[column] for column in columns]
        writer.writerow(rng.choice((cells, cells, cells, cells[:1], [*cells, "more"])))
    return stream.getvalue().encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "gb18030")), "replace")


def cell_of(rng: random.Random):
    text = text_of(rng)
    odd = (1, -1.5, True, None, float("nan"), 10**400, [], [None, text], [[text]], {"a": text}, "\ud800")
    return rng.choice((text, text, text, [text, text_of(rng)], rng.choice(odd)))


def jsonl_of(rng: random.Random, names: list[str]) -> bytes:
    rows = [json.dumps({"file_name": name, "text": cell_of(rng)}, ensure_ascii=rng.random() < 0.5) for name in names]
    rows += rng.choice(([], [], ["{"], ["[1]"], ["null"], ["[" * 5000], ['{"file_name": 3, "text": "a"}']))
    return "\n".join(rows).encode("utf-8", "surrogatepass")


def parquet_of(rng: random.Random, names: list[str]) -> bytes:
    cells = [text_of(rng) for _ in names]
    kinds = {
        "text": cells,
        "list": [[cell] for cell in cells],
        "nested": [[[cell]] for cell in cells],
        "struct": [{"a": cell} for cell in cells],
        "bytes": [cell.encode() for cell in cells],
        "number": [1.5] * len(cells),
        "null": [None] * len(cells),
    }
    stream = io.BytesIO()
    name = rng.choice(("text", "text", "text", *kinds))
    pq.write_table(pa.table({"file_name": names, "text": kinds[name]}), stream)
    return stream.getvalue()


MAKERS = {"csv": csv_of, "jsonl": jsonl_of, "parquet": parquet_of}


@pytest.mark.parametrize("kind", MAKERS)
def test_fuzzed_tables_are_accepted_or_refused_in_one_line(kind, tmp_path, tokenizers, trials, survived):
    rng, count, names = random.Random(2), trials(100, 1000), ["a.png", "b.png"]
    for name in names:
        (tmp_path / name).write_bytes(png(8, 8))
    table, refused, accepted = tmp_path / f"metadata.{kind}", 0, []
    for _ in range(count):
        data = MAKERS[kind](rng, names)
        table.write_bytes(damaged(data, rng, [data]) if rng.random() < 0.3 else data)
        got = captions_of(tmp_path)
        refused += isinstance(got, str)
        accepted += [] if isinstance(got, str) else [caption for texts in got for caption in texts]
    assert 0.1 * count < refused < count and accepted
    assert_tokenised(accepted, tokenizers)
    survived(f"fuzzed table of captions ({kind})", count)


def test_fuzzed_parquet_of_pictures_is_read_or_refused_in_one_line(tmp_path, trials, survived):
    rng, count, refused = random.Random(3), trials(60, 600), 0
    stream = io.BytesIO()
    images = [{"bytes": png(8, 8), "path": "a.png"}, {"bytes": png(9, 9), "path": None}, None]
    pq.write_table(pa.table({"image": images, "text": ["a", "b", "c"]}), stream)
    path = tmp_path / "mine.parquet"
    for _ in range(count):
        path.write_bytes(damaged(stream.getvalue(), rng, [stream.getvalue()]))
        try:
            assert len(list(open_source(DataOptions(source=str(path))).encoded())) <= 3
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 0.3 * count
    survived("damaged parquet file of pictures", count)


def test_columns_given_twice_and_numbers_that_are_none(tmp_path):
    (tmp_path / "a.png").write_bytes(png(8, 8))
    (tmp_path / "metadata.csv").write_text("file_name,text,text\na.png,one,two\n")
    assert "has the column 'text' more than once" in str(captions_of(tmp_path))
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": NaN}')  # as pandas writes what is missing
    assert captions_of(tmp_path) == [()]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "x" * 5000, "text": "a"}))
    assert "do not exist" in str(captions_of(tmp_path))
