"""Captions of every source become clean lines."""

import pytest

from ldm.formats.records import clean_caption


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a\r\n\tb\u2028c\u3000d\x00e\u0085f", "a b c d e f"),
        ("\ufeffcafe\u0301", "caf\u00e9"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("  \n ", ""),
        ("x" * 10_000, "x" * 10_000),
    ],
)
def test_captions_become_one_clean_line(raw, clean):
    assert clean_caption(raw) == clean
    clean.encode()
