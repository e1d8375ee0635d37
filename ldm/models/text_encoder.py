"""The text encoder: a standard `CLIPTextModel`, loaded from a run, cut out of a CLIP model, or untrained.

The null caption is the empty string: what caption dropout trains, and what 'unconditional' means.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from ldm.config.settings import ClipModel
from ldm.models.tokenizer import Vocabulary, restore_normalizer, train_tokenizer
from ldm.utils.errors import UserError
from ldm.utils.untrusted_files import check_code, check_files, check_network, count, read_json

VOCABULARIES = ("tokenizer.json", "vocab.json")  # files, one of which a tokenizer has


def text_config(model: ClipModel, tokenizer: CLIPTokenizer | Vocabulary) -> CLIPTextConfig:
    """The text encoder's shape, from the settings of CLIP and the vocabulary."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=model.width,
        intermediate_size=4 * model.width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        max_position_embeddings=model.context_length,
        projection_dim=model.embed_dim,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """The text encoder of a CLIPModel as a model of its own, sharing no weights with it."""
    encoder = CLIPTextModel(clip.config.text_config)
    inner = getattr(encoder, "text_model", encoder)  # transformers below 5 wraps the tower once more
    inner.load_state_dict(clip.text_model.state_dict())
    return encoder.eval()


def null_text_encoder() -> tuple[CLIPTextModel, CLIPTokenizer]:
    """A tiny, fixed text encoder for unconditional models: it only ever receives the null caption."""
    tokenizer = train_tokenizer([], vocab_size=514, context_length=8)
    torch.manual_seed(0)
    model = ClipModel(vocab_size=514, context_length=8, width=32, layers=1, heads=1, embed_dim=32)
    return CLIPTextModel(text_config(model, tokenizer)).eval(), tokenizer


def untrained_text_encoder(width: int, layers: int, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder with 4 heads, to be trained together with the denoiser."""
    model = ClipModel(width=width, layers=layers, heads=4, context_length=tokenizer.model_max_length)
    return CLIPTextModel(text_config(model, tokenizer))


def load_text(folder: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The text encoder, in float32 and evaluation mode, and its tokenizer.

    Args:
        folder: of a finished CLIP run, one with `text_encoder` and `tokenizer`, or one where both lie side by side, as
            CLIP models do on the Hub, whose image encoder is passed over.

    Raises: UserError if there are none, or if they cannot be read or do not go together.
    """
    for encoder, tokenizer in _places(folder):
        if (encoder / "config.json").is_file() and any((tokenizer / name).is_file() for name in VOCABULARIES):
            text_encoder = _load_encoder(encoder)
            return text_encoder, _load_tokenizer(tokenizer, text_encoder.config)
    raise UserError(
        f"no finished text encoder in {folder}: run `ldm train clip` first, or give --text.source a folder that holds "
        "text_encoder/ and tokenizer/ or a CLIP model with its tokenizer, a Hub id such as "
        "openai/clip-vit-large-patch14, open_clip:ARCH/TAG, or none"
    )


def _places(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Where a text encoder and its tokenizer may lie."""
    for candidate in (folder / "final", folder):
        yield candidate / "text_encoder", candidate / "tokenizer"
    yield folder, folder
    yield folder, folder.parent / "tokenizer"


def _load_encoder(folder: Path) -> CLIPTextModel:
    check_files(folder, {"": folder})
    settings = read_json(folder / "config.json")
    if settings.get("model_type") not in ("clip", "clip_text_model"):
        raise UserError(f"{folder} is of type {settings.get('model_type')!r}; only CLIP's text encoders are read")
    parts = [settings[name] for name in ("text_config", "text_config_dict") if settings.get(name)]
    for part in [{key: value for key, value in settings.items() if not key.endswith(("_config", "_dict"))}, *parts]:
        check_network(folder / "config.json", part)
    try:
        config = CLIPTextConfig.from_dict({key: value for part in parts for key, value in part.items()} or settings)
        with torch.device("meta"):  # takes no memory
            wanted = sum(weight.numel() for weight in CLIPTextModel(config).parameters())
        if wanted > (there := count(folder)):
            raise UserError(f"{folder} describes {wanted:,} weights; the files beside its config hold {there:,}")
        found, report = _without_remarks(folder)
    except UserError:
        raise
    except Exception as error:  # transformers has many exceptions for a broken file
        raise UserError(f"the text encoder in {folder} cannot be read: {str(error).splitlines()[0]}") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"the text encoder in {folder} is incomplete: {missing[0]} is missing ({len(missing)} in all)")
    return found.eval()


def _without_remarks(folder: Path) -> tuple[CLIPTextModel, dict]:
    """The model and what was missing; nothing is printed of the weights of an image encoder, which are passed over."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return CLIPTextModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    finally:
        transformers_logging.set_verbosity(before)


def _load_tokenizer(folder: Path, text: CLIPTextConfig) -> CLIPTokenizer:
    """The tokenizer in a folder; where it has no length, or a longer one, with that of the text encoder."""
    check_files(folder, {"": folder})
    if (folder / "tokenizer_config.json").is_file():
        check_code(folder / "tokenizer_config.json", read_json(folder / "tokenizer_config.json"))
    try:
        tokenizer = restore_normalizer(CLIPTokenizer.from_pretrained(folder, local_files_only=True), folder)
    except Exception as error:  # likewise
        raise UserError(f"the tokenizer in {folder} cannot be read: {str(error).splitlines()[0]}") from error
    if len(tokenizer) > text.vocab_size:
        known = f"{len(tokenizer):,} tokens, and its text encoder {text.vocab_size:,}"
        raise UserError(f"the tokenizer in {folder} has {known}: they do not go together")
    if tokenizer.model_max_length > text.max_position_embeddings:
        tokenizer.model_max_length = text.max_position_embeddings
        tokenizer.init_kwargs["model_max_length"] = text.max_position_embeddings  # what is saved
    return tokenizer
