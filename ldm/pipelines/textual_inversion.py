"""Textual inversion: words that somebody learned for a text encoder (Gal et al. 2022, arXiv 2208.01618)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ldm.utils.errors import UserError


def read_embedding(given: str | Path | Mapping[str, Tensor], token: str | None = None) -> tuple[str, Tensor]:
    """A token and its vectors (n, D), from a file of diffusers or a dict {token: vectors}.

    Args: given: a .safetensors file, a folder with learned_embeds.safetensors, or a dict with one entry; token: to use
        in place of the name there.
    Raises: UserError for anything else.
    """
    if not isinstance(given, Mapping):
        path = Path(given).expanduser()
        path = path / "learned_embeds.safetensors" if path.is_dir() else path
        if path.suffix != ".safetensors" or not path.is_file():
            raise UserError(
                f"textual inversion {path}: name a .safetensors file that exists; other formats are not read"
            )
        try:
            given = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"textual inversion {path} cannot be read: {str(error).splitlines()[0]}") from None
    if len(given) != 1:
        raise UserError(f"textual inversion must hold one token, got {len(given)}: {', '.join(given)[:80]}")
    name, vectors = next(iter(given.items()))
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not vectors.is_floating_point() or not vectors.isfinite().all():
        raise UserError(f"textual inversion {name!r} must be finite vectors (n, D), got {tuple(vectors.shape)}")
    return token or name, vectors


@torch.no_grad()
def add_token(tokenizer: Any, text_encoder: Any, token: str, vectors: Tensor) -> None:
    """Teach both a token; of several vectors the others get the names token_1, token_2 and so on.

    Raises: ValueError for a token that is there, and for vectors of another width, before anything is changed.
    """
    names = [token, *(f"{token}_{i}" for i in range(1, len(vectors)))]
    if there := [name for name in names if name in tokenizer.get_vocab()]:
        raise ValueError(f"token {there[0]!r} is in the tokenizer's vocabulary already: choose another with token=")
    table = text_encoder.get_input_embeddings().weight
    if vectors.shape[1] != table.shape[1]:
        raise ValueError(f"the vectors must have the text encoder's width {table.shape[1]}, got {vectors.shape[1]}")
    tokenizer.add_tokens(names)
    text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows = text_encoder.get_input_embeddings().weight
    rows[tokenizer.convert_tokens_to_ids(names)] = vectors.to(rows)


def with_all_vectors(prompt: str, tokenizer: Any) -> str:
    """The prompt with "token" as "token token_1 token_2" where a token has several vectors."""
    added = tokenizer.added_tokens_encoder
    for token in added:
        if token in prompt and f"{token}_1" in added and f"{token}_1" not in prompt:
            count = next(i for i in range(1, len(added) + 1) if f"{token}_{i}" not in added)
            prompt = prompt.replace(token, " ".join([token, *(f"{token}_{i}" for i in range(1, count))]))
    return prompt
