"""Text is cleaned before tokenizing as open_clip's tokenizer does it: against known results of ftfy and html."""

import importlib.util

import pytest
from odd_captions import CLEANED
from tiny_model import tiny_tokenizer

from ldm.models.text_cleaning import open_clip_normalizer
from ldm.models.tokenizer import encode, restore_normalizer, save_tokenizer, tokenizer_digest


@pytest.mark.parametrize("text", CLEANED)
def test_text_is_cleaned(text):
    assert open_clip_normalizer().normalize_str(text) == CLEANED[text]


def test_a_number_that_begins_as_another_is_another():
    assert open_clip_normalizer().normalize_str("&#391; &#39;1 &#x270f; &#x27;0f") == "&#391; '1 &#x270f; '0f"


@pytest.mark.skipif(importlib.util.find_spec("ftfy") is None, reason="ftfy is not installed (extra openclip)")
def test_it_is_what_ftfy_and_html_make_of_it():
    import html

    import ftfy

    for text in CLEANED:
        theirs = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
        assert CLEANED[text] == theirs, text


def test_a_saved_tokenizer_still_cleans(tmp_path):
    tokenizer = tiny_tokenizer()
    plain, text = tokenizer_digest(tokenizer), "salt &amp; \u201cpepper\u201d"
    before = encode(tokenizer, [text])
    tokenizer.backend_tokenizer.normalizer = open_clip_normalizer()
    after = encode(tokenizer, [text])
    assert before.tolist() != after.tolist() == encode(tiny_tokenizer(), ['salt & "pepper"']).tolist()
    save_tokenizer(tokenizer, tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert encode(loaded, [text]).tolist() == before.tolist()  # transformers passes over the file's normalizer
    assert encode(restore_normalizer(loaded, tmp_path), [text]).tolist() == after.tolist()
    assert tokenizer_digest(loaded) == tokenizer_digest(tokenizer) != plain
    again = tiny_tokenizer()
    assert restore_normalizer(again, tmp_path / "none") is again and tokenizer_digest(again) == plain


def test_words_are_found_in_the_prompt_as_it_was_written():
    """Weights of words depend on where a token comes from."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = open_clip_normalizer()
    text = "a &amp; b"
    spans = tokenizer(text, return_offsets_mapping=True).offset_mapping[1:-1]
    assert spans[0] == (0, 1) and spans[2] == (8, 9) and 2 <= spans[1][0] < spans[1][1] <= 7
