"""How open_clip cleans text before it tokenizes it, as rules that a tokenizer.json can hold.

There it is ftfy's repair, HTML entities twice, white space to single spaces, lower case. The rules say the same in
steps that need no Python, so every program that reads the file, with or without ftfy, makes the same tokens. What
depends on the whole text has no rule: text that was decoded wrongly ('cafÃ©') stays as it is.
"""

import html
import unicodedata
from collections.abc import Iterator
from html.entities import name2codepoint

from tokenizers import Regex
from tokenizers.normalizers import NFC, Lowercase, Normalizer, Replace, Sequence, Strip

LEVELS = 3  # '&amp;amp;lt;': once by ftfy, twice by open_clip
TERMINAL = r"\x1b\[[\d;]*[a-zA-Z]"
CONTROL = r"[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]"
SINGLE_QUOTES, DOUBLE_QUOTES = "[\u02bc\u2018-\u201b]", "[\u201c-\u201f]"
WINDOWS = sorted({*range(0x80, 0xA0)} - {0x81, 0x8D, 0x8F, 0x90, 0x9D})  # its letters, where Unicode has controls
LIGATURES = [0x132, 0x133, 0x149, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07)]
WIDE = [0x3000, *range(0xFF01, 0xFFF0)]  # and narrow: characters of another width than usual
FINAL_SIGMA = r"(?<=\p{L})\u03a3(?!\p{L})"
NUMBERED = {*range(32, 127), *range(160, 384), *range(0x2010, 0x2040)}  # characters that are written as numbers


def open_clip_normalizer() -> Normalizer:
    """The steps in open_clip's order."""
    steps: list[Normalizer] = [Replace(Regex(_entity(38, ["amp", "AMP"])), "&") for _ in range(LEVELS)]
    steps += [Replace(Regex(pattern), text) for pattern, text in _entities()]
    steps += [Replace(chr(code), bytes([code]).decode("cp1252")) for code in WINDOWS]
    steps += [Replace(chr(code), _ligature(code)) for code in LIGATURES]
    usual = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in WIDE}
    steps += [Replace(wide, letters) for wide, letters in usual.items() if wide != letters]
    steps += [Replace(Regex(SINGLE_QUOTES), "'"), Replace(Regex(DOUBLE_QUOTES), '"')]
    steps += [Replace(Regex(TERMINAL), ""), Replace(Regex(CONTROL), ""), NFC()]
    steps += [Replace(Regex(r"\s+"), " "), Strip(), Replace(Regex(FINAL_SIGMA), "\u03c2"), Lowercase()]
    return Sequence(steps)


def _ligature(code: int) -> str:
    """The letters of a ligature; a long s stays one."""
    return "\u017ft" if code == 0xFB05 else unicodedata.normalize("NFKC", chr(code))


def _entities() -> Iterator[tuple[str, str]]:
    """(pattern, character) of HTML's entities, by name and by number."""
    names: dict[int, list[str]] = {code: [] for code in NUMBERED}
    for name, code in {**name2codepoint, "apos": 39, "QUOT": 34, "LT": 60, "GT": 62}.items():
        names.setdefault(code, []).append(name)
    for code in sorted(names.keys() - {38}):
        yield _entity(code, names[code]), chr(code)


def _entity(code: int, names: list[str]) -> str:
    """&quot; &#34; &#x22;, and without the semicolon where HTML takes that."""
    short = [f"{name};?" if html.unescape(f"&{name}") != f"&{name}" else f"{name};" for name in names]
    digits = "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in f"{code:x}")
    numbers = [rf"#0*{code}(?:;|(?!\d))", rf"#[xX]0*{digits}(?:;|(?![\da-fA-F]))"]
    return f"&(?:{'|'.join([*short, *numbers])})"
