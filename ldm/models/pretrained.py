"""Autoencoders and text encoders that others trained: a folder, or a repository of the Hub or a subfolder of one.

Of a repository only the component is fetched: the settings of every place where it may lie, then the weights of the
first place that has some. They are the same files as in a folder, and are checked in the same way when they are read.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ldm.utils.assets import shipped_autoencoder
from ldm.utils.errors import UserError
from ldm.utils.hub_client import pull

# user/name, user/name/subfolder, either with @revision
HUB_SOURCE = re.compile(r"(\w[\w.\-]*/\w[\w.\-]*)((?:/\w[\w.\-]*)*)(?:@(\w[\w\-]*(?:[./][\w\-]+)*))?")
VARIANTS = ["*.fp16.*", "*.non_ema.*"]  # the same weights once more
OPEN_CLIP = ", such as user/name/vae, or open_clip:hf-hub:user/name for a text encoder in open_clip's layout"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class Component:
    """What a component is called, where below a folder it may lie, and the names of its files."""

    what: str
    places: tuple[str, ...]
    settings: tuple[str, ...]
    weights: str


VAE = Component("autoencoder", ("vae", ""), ("vae/config.json", "config.json"), "diffusion_pytorch_model*.safetensors*")
TEXT = Component(
    "text encoder",
    ("text_encoder", ""),
    ("text_encoder/config.json", "config.json", *TOKENIZER, *(f"tokenizer/{name}" for name in TOKENIZER)),
    "model*.safetensors*",
)


def locate(source: str, component: Component, weights: bool = True) -> Path:
    """The folder to look for a component in: what exists here comes first, then what ships, then the Hub.

    Args:
        source: a folder, an autoencoder that ships with the project, `user/name`, `user/name/subfolder`, or one of the
            latter two with `@revision`.
        weights: False = its settings alone.

    Raises: UserError: the Hub's reason, or that the repository holds no such component in a format that is read.
    """
    local = Path(source)
    if component is VAE and not local.exists() and (shipped := shipped_autoencoder(source)):
        return shipped
    named = None if local.exists() else HUB_SOURCE.fullmatch(source)
    if named is None:
        return local
    repo, below, revision = named[1], named[2].strip("/"), named[3]
    inside = f"{below}/" if below else ""
    beside = [f"{inside.rpartition('/')[0].rpartition('/')[0]}/tokenizer/{name}".lstrip("/") for name in TOKENIZER]
    snapshot = pull(repo, revision, [f"{inside}{name}" for name in component.settings] + (beside if below else []))
    place = next((each for each in component.places if (snapshot / below / each / "config.json").is_file()), None)
    if place is None:
        where = " or ".join("/".join(filter(None, (below, each, "config.json"))) for each in component.places)
        raise UserError(f"{repo} on the Hub holds no {component.what}, no {where}: name its subfolder{OPEN_CLIP}")
    if weights:
        pull(repo, snapshot.name, ["/".join(filter(None, (below, place, component.weights)))], leaving=VARIANTS)
        if not any((snapshot / below / place).glob("*.safetensors")):
            raise UserError(
                f"{repo} on the Hub holds no {component.weights.replace('*', '')} for its {component.what}, and other "
                "formats are not read (SECURITY.md): name a revision that has it, such as user/name@refs/pr/1"
            )
    return snapshot / below
