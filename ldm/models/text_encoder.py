"""The text encoder: a standard `CLIPTextModel`, loaded from a run, cut out of a CLIP model, or untrained.

The null caption is the empty string: what caption dropout trains, and what 'unconditional' means.
"""

from pathlib import Path

import torch
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.config.settings import ClipModel
from ldm.models.tokenizer import Vocabulary, train_tokenizer
from ldm.utils.errors import UserError
from ldm.utils.untrusted_files import validated


def text_config(model: ClipModel, tokenizer: Vocabulary) -> CLIPTextConfig:
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
    """The text encoder, in float32 and evaluation mode, and tokenizer of a finished CLIP run or any folder with both.

    Raises: UserError if there are none, or if they cannot be read.
    """
    for candidate in (folder / "final", folder):
        if (candidate / "text_encoder" / "config.json").is_file() and (candidate / "tokenizer").is_dir():
            where = validated(candidate / "text_encoder")
            try:
                encoder = CLIPTextModel.from_pretrained(where, use_safetensors=True, dtype=torch.float32)
                return encoder.eval(), CLIPTokenizer.from_pretrained(candidate / "tokenizer")
            except Exception as error:  # transformers has many exceptions for a broken file
                raise UserError(
                    f"the text encoder in {candidate} cannot be read: {str(error).splitlines()[0]}"
                ) from error
    raise UserError(
        f"no finished text encoder in {folder}: run `ldm train clip` first, point --text.source to a folder that holds "
        "text_encoder/ and tokenizer/, or use open_clip:ARCH/TAG, or none"
    )
