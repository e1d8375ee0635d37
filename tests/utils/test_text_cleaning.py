"""Texts as open_clip cleans them; that they become its tokens is in tests/models/test_open_clip.py."""

import sys

import pytest
from tiny_model import tiny_tokenizer

from ldm.models.tokenizer import TokenRows, encode, save_tokenizer, tokenizer_digest
from ldm.utils.errors import UserError
from ldm.utils.text_cleaning import KEY, clean_text, cleaned


def test_nothing_is_cleaned_unless_the_tokenizer_says_so():
    odd = "\u201cCurly\u201d  &amp; \ufb01ne"
    assert clean_text(odd, None) == odd and cleaned(tiny_tokenizer(), [odd]) == [odd]
    with pytest.raises(UserError, match="names the text_cleaning 'bert'; only 'open_clip'"):
        clean_text(odd, "bert")


def test_plain_ascii_needs_no_ftfy_and_other_text_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert clean_text("  A Red\t ball, it's\n5% ", "open_clip") == "a red ball, it's 5%"
    for text in ("caf\u00e9", "a &amp; b", "\u201ca\u201d", "a\x1b[0m"):
        with pytest.raises(UserError, match="pip install ftfy"):
            clean_text(text, "open_clip")


def test_open_clips_cleaning_with_ftfy():
    pytest.importorskip("ftfy")
    texts = {
        "\u201cCurly\u201d it\u2019s": '"curly" it\'s',
        "R&amp;D &amp;lt;b&amp;gt;": "r&d <b>",
        "\uff21\uff22 \ufb01ne": "ab fine",
        "\u039f\u0394\u039f\u03a3": "\u03bf\u03b4\u03bf\u03c2",  # a final sigma at the end of a word
    }
    assert {text: clean_text(text, "open_clip") for text in texts} == texts


def test_captions_are_cleaned_wherever_they_become_tokens_and_the_way_is_kept(tmp_path):
    from transformers import CLIPTokenizer

    plain = tiny_tokenizer()
    folder = tmp_path / "tokenizer"
    plain.init_kwargs[KEY] = "open_clip"
    save_tokenizer(plain, folder)
    again = CLIPTokenizer.from_pretrained(folder)
    wanted = encode(tiny_tokenizer(), ["a red ball"])
    assert encode(again, ["a  RED\tball "]).equal(wanted) and TokenRows(again)(["A red   ball"]).equal(wanted)
    assert tokenizer_digest(again) != tokenizer_digest(tiny_tokenizer())
