"""The finished autoencoder and text encoder that a denoiser is trained with."""

from pathlib import Path

from transformers import CLIPTextModel, CLIPTokenizer

from ldm.config.settings import ClipModel, LdmSettings
from ldm.data import ImageTextData
from ldm.models.autoencoder import load_vae
from ldm.models.identity_autoencoder import IdentityAutoencoder
from ldm.models.text_encoder import load_text, new_text, null_text
from ldm.training.run_directory import sibling
from ldm.training.tasks.clip import run_tokenizer
from ldm.utils.errors import UserError


def find_vae(source: str, run: Path, data: ImageTextData):
    """The autoencoder that `vae` names. Raises: UserError if there is none."""
    if source == "identity":
        return IdentityAutoencoder(data.channels, data.channels, data.channels).eval()
    return load_vae(sibling(run, "vae") if source == "run" else Path(source))


def find_text(settings: LdmSettings, run: Path, data: ImageTextData) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The text encoder and tokenizer that `text.source` names. Raises: UserError if there are none."""
    options = settings.text
    if options.source == "none":
        return null_text()
    if options.source == "new":
        if not data.has_captions:
            raise UserError("text.source: new has no captions to learn from; set text.source: none")
        tokenizer = run_tokenizer(run, ClipModel(), data, settings.seed)
        return new_text(options.width, options.layers, tokenizer), tokenizer
    if options.source.startswith("open_clip:"):
        from ldm.models.open_clip import load_text_tower

        return load_text_tower(options.source)
    return load_text(sibling(run, "clip") if options.source == "run" else Path(options.source))
