"""Captions and prompts as a pretrained text encoder was trained to get them, where its tokenizer does not see to it."""

import html
from collections.abc import Iterable
from typing import Any

from ldm.utils.errors import UserError

KEY = "text_cleaning"  # in tokenizer_config.json: the way of cleaning, or nothing
OPEN_CLIP = "open_clip"


def clean_text(text: str, cleaning: str | None) -> str:
    """The text in the form that its tokenizer takes.

    Args:
        cleaning: None = as it is. "open_clip": broken Unicode mended by ftfy, which also straightens curly quotes and
            brings ligatures and full-width letters to plain ones; HTML entities replaced, twice; spaces made single;
            lower case. Plain ASCII needs no ftfy.

    Raises: UserError for an unknown cleaning, or where ftfy is needed and missing.
    """
    if cleaning is None:
        return text
    if cleaning != OPEN_CLIP:
        raise UserError(f"tokenizer_config.json names the {KEY} {cleaning!r}; only {OPEN_CLIP!r} is known here")
    single = " ".join(text.split())
    if not single.isascii() or not single.isprintable() or "&" in single:
        single = " ".join(html.unescape(html.unescape(_ftfy().fix_text(text))).split())
    return single.lower()


def cleaning_of(tokenizer: Any) -> str | None:
    """How texts are cleaned before a tokenizer of transformers."""
    return getattr(tokenizer, "init_kwargs", {}).get(KEY)


def cleaned(tokenizer: Any, texts: Iterable[str]) -> list[str]:
    """Texts as they go into the tokenizer."""
    return [clean_text(text, cleaning_of(tokenizer)) for text in texts]


def _ftfy() -> Any:
    try:
        import ftfy
    except ModuleNotFoundError:
        raise UserError(
            "this model's text encoder is from open_clip, which cleans text other than plain ASCII with ftfy: "
            "pip install ftfy"
        ) from None
    return ftfy
